"""Running an exported model on calibration data: the module itself where that is possible, else the graph."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from twinquant.calibration.batches import ObservingRun, observe_values
from twinquant.calibration.station import Station
from twinquant.errors import UnsupportedModelError
from twinquant.registry import ModelInput, RunBatch, Tap
from twinquant.registry.float_model import Array
from twinquant_onnx.framework import OnnxFramework
from twinquant_torch.batch import BatchValues
from twinquant_torch.graph import TorchGraph, TorchOrigin
from twinquant_torch.graph_run import run_graph
from twinquant_torch.hooks import Receiver, hooked, is_observable
from twinquant_torch.inputs import Call, device_of
from twinquant_torch.tensors import exact_array, to_array

__all__ = ["calls_of", "describe_inputs", "split_taps", "tap_graph"]


def describe_inputs(graph: TorchGraph) -> tuple[ModelInput, ...]:
    """Describe the inputs of a graph, or of its module, which takes batches of any size.

    The older exporter leaves out of a graph what no node reads; the module takes it.
    """
    known = {value.name: value for value in OnnxFramework().model_inputs(graph.model)}
    if graph.origin is None:
        return tuple(known.values())
    layout = graph.origin.layout
    return tuple(
        ModelInput(name, exact_array(tensor).dtype.name, _shape(known.get(name), tensor.shape, open_axes))
        for name, tensor, open_axes in zip(layout.names, layout.tensors, layout.open_axes, strict=True)
    )


def _shape(known: ModelInput | None, lengths: Sequence[int], open_axes: frozenset[int]) -> tuple[int | str | None, ...]:
    names = [length if isinstance(length, str) else None for length in (known and known.shape) or lengths]
    return tuple(names[axis] if axis in open_axes else length for axis, length in enumerate(lengths))


def split_taps(graph: TorchGraph, taps: Sequence[Tap]) -> tuple[dict[Tap, str], list[Tap]]:
    """Return the taps that hooks on modules can see, with the paths of these modules, and the others."""
    if graph.origin is None:
        return {}, list(taps)
    paths = {tap: graph.named.modules[tap.layer] for tap in taps if tap.layer in graph.named.modules}
    seen = {tap: path for tap, path in paths.items() if is_observable(graph.origin.module.get_submodule(path))}
    return seen, [tap for tap in taps if tap not in seen]


def calls_of(graph: TorchGraph, batches: Iterable[Mapping[str, Array]]) -> Iterator[Call]:
    """Yield the arguments of the module for batches of arrays by input name; none where there is no module."""
    if graph.origin is not None:
        device = device_of(graph.origin.module)
        for feeds in batches:
            yield graph.origin.layout.call_of(feeds, device)


def tap_graph(graph: TorchGraph, taps: Sequence[Tap], threads: int | None) -> RunBatch:
    """Return what runs a batch and yields the values of the taps, in their order.

    Raises:
        UnsupportedModelError: ONNX Runtime cannot run the graph.
    """
    by_hooks, others = split_taps(graph, taps)
    run = run_graph(graph, others, threads) if others else None
    if graph.origin is None or not by_hooks:
        assert run is not None
        return run
    return _Runner(graph.origin, tuple(taps), by_hooks, run)


@dataclass(frozen=True, slots=True, eq=False)
class _Runner(ObservingRun):
    """A module, and the graph for what hooks cannot see.

    Attributes:
        origin: the module.
        taps: all of them, in the order in which they are yielded.
        hooked: those that hooks see, and the paths of their modules.
        graph: runs the graph for the others; None: there are none.
    """

    origin: TorchOrigin
    taps: tuple[Tap, ...]
    hooked: Mapping[Tap, str]
    graph: RunBatch | None

    def __call__(self, feeds: Mapping[str, Array]) -> Iterator[tuple[Tap, Sequence[Array]]]:
        """Run one batch."""
        values: dict[Tap, list[Array]] = {}

        def keep(tap: Tap, tensor: torch.Tensor) -> None:
            # A copy: the module may change the tensor in place after it was read.
            values.setdefault(tap, []).append(np.array(to_array(tensor)))

        self._run(feeds, keep)
        rest = None if self.graph is None else self.graph(feeds)
        for tap in self.taps:
            if tap in self.hooked:
                yield tap, values.pop(tap)
            else:
                assert rest is not None
                yield next(rest)

    def observe(self, feeds: Mapping[str, Array], stations: Sequence[Station], number: int) -> None:
        """Run one batch; what hooks see is observed, or reduced, as soon as they see it."""
        values = BatchValues([s for s in stations if s.watch.tap in self.hooked], number, direct=True)
        self._run(feeds, values.receive, f"batch {number + 1}: ")
        values.commit()
        if self.graph is not None:
            others = [station for station in stations if station.watch.tap not in self.hooked]
            observe_values(self.graph, feeds, others, number)

    def _run(self, feeds: Mapping[str, Array], receive: Receiver, where: str = "") -> None:
        """Run the module, and see that every hook was called."""
        seen: set[Tap] = set()

        def note(tap: Tap, tensor: torch.Tensor) -> None:
            seen.add(tap)
            receive(tap, tensor)

        module = self.origin.module
        args, kwargs = self.origin.layout.call_of(feeds, device_of(module))
        try:
            with self.origin.copy.undisturbed(), hooked(module, self.hooked, note), torch.no_grad():
                module(*args, **kwargs)
        except Exception as error:  # forward is the user's code
            raise UnsupportedModelError(f"{where}the model cannot run this batch: {error}") from error
        for tap in self.hooked:
            if tap not in seen:
                raise UnsupportedModelError(f"{where}the module {tap.layer!r} was not called for this batch")
