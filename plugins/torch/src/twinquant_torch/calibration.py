"""The module that calibrates while it runs: hooks feed the core's observers, batch after batch."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils import _pytree as pytree

from twinquant.calibration.batches import errors_about, taps_of
from twinquant.calibration.station import Station
from twinquant.errors import CalibrationError, RecordFileError, TwinQuantError, UnsupportedModelError
from twinquant.records import RecordSet, write_record_file, write_unfinished_record
from twinquant.registry import Tap
from twinquant_torch.activations import split_taps
from twinquant_torch.distributed import gather, is_writer, merge_stations, on_writer, share_of, world
from twinquant_torch.graph import TorchGraph, TorchOrigin
from twinquant_torch.graph_run import run_graph
from twinquant_torch.hooks import hooked
from twinquant_torch.inputs import Call, device_of
from twinquant_torch.reduction import reduced
from twinquant_torch.spool import InputSpool
from twinquant_torch.tensors import to_array

__all__ = ["Calibration", "CalibrationModule", "Outcome"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a calibration ends with.

    Attributes:
        records: the factors.
        graph: what they are for.
    """

    records: RecordSet
    graph: TorchGraph


class CalibrationModule(torch.nn.Module):
    """Computes what the float model computes, and calibrates on its first `batch_num` batches.

    When it has seen them, the record file is complete; further batches just run.

    Args:
        model: the float model, or what runs it on several devices.
        calibration: what is measured.
    """

    def __init__(self, model: torch.nn.Module, calibration: Calibration) -> None:
        super().__init__()
        self.model = model
        self.calibration = calibration
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the float model on a batch.

        Raises:
            DataError: the inputs are not what the example inputs were like.
            CalibrationError: the values give no factors; all later batches fail alike.
            UnsupportedModelError: the module was put into training mode.
            OutputError: the record cannot be written.
        """
        if self.calibration.is_complete:
            return self.model(*args, **kwargs)
        if self.training:
            raise UnsupportedModelError(
                "the calibration model was put into training mode, where BatchNormalization uses the statistics of "
                "each batch; call .eval() on it"
            )
        return self.calibration.see(self.model, args, kwargs)


class Calibration:
    """A calibration that goes on as its module runs.

    Args:
        graph: the exported model, fused.
        stations: what is measured.
        record_file: the record.
        begun: factors that the record holds from the beginning.
        batch_num: how many batches are seen, by all processes together.
        weight_maxima: gives the largest magnitude of a layer's weight for each input channel.
        conclude: makes the outcome of finished stations.
        keep_batches: how many batches are needed after the passes: 0, 1 or all of them (None).
        passes: how many passes there are at most; None: as many as the algorithms need.
    """

    def __init__(
        self,
        graph: TorchGraph,
        stations: Sequence[Station],
        record_file: Path,
        begun: RecordSet,
        batch_num: int,
        *,
        weight_maxima: Callable[[str], npt.NDArray[np.float32]],
        conclude: Callable[[Calibration], Outcome],
        keep_batches: int | None = 0,
        passes: int | None = None,
    ) -> None:
        assert graph.origin is not None  # there is a module to run
        self.graph = graph
        self.origin: TorchOrigin = graph.origin
        self.stations = list(stations)
        self.outcome: Outcome | None = None
        self.first_batch: dict[str, npt.NDArray[Any]] | None = None
        self._record_file, self._begun, self._batch_num = record_file, begun, batch_num
        self._weight_maxima, self._conclude = weight_maxima, conclude
        self._passes = passes
        self._share = share_of(batch_num)
        self._seen = 0
        self._failure: str | None = None
        self._lock = threading.RLock()
        self._by_hooks, self._by_graph = split_taps(graph, taps_of(self.stations))
        several = passes is None and any(station.most_passes > 1 for station in self.stations)
        self._keeps_all = keep_batches is None or several or bool(self._by_graph)
        self._keeps_first = keep_batches == 1
        self._spool = InputSpool()
        on_writer(self._note_progress)

    @property
    def is_complete(self) -> bool:
        """The record is written."""
        return self.outcome is not None

    def see(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Run one batch and look at it; return what the model returns. With the last batch, write the record."""
        if self._failure is not None:
            raise CalibrationError(self._failure)
        self.origin.layout.check(args, kwargs, device_of(self.origin.module))
        try:
            output = self._run(model, args, kwargs, self._seen)
            leaves = pytree.tree_leaves((args, dict(kwargs)))
            if self._keeps_all:
                self._spool.add(leaves)
            if self._keeps_first and self.first_batch is None:
                self.first_batch = self._feeds(leaves)
            self._seen += 1
            if self._seen < self._share:
                if is_writer():
                    self._note_progress()
            else:
                with torch.inference_mode(False), torch.no_grad():
                    self._finish(model)
        except TwinQuantError as error:
            self._failure = str(error)
            if is_writer():
                write_unfinished_record(self._begun, self._record_file, self._failure)
            raise
        return output

    def require_complete(self) -> Outcome:
        """Return the outcome.

        Raises:
            RecordFileError: the calibration has not finished; the message says how many batches it has seen.
        """
        if self.outcome is None:
            raise RecordFileError(
                f"record file {str(self._record_file)!r}: calibration has not finished: "
                f"{self._failure or self._progress}; run the calibration model on {self._batch_num} batches, then save"
            )
        return self.outcome

    def calls(self) -> Iterator[Call]:
        """Give the arguments of the batches that were kept, of all processes, in one order."""
        spec = self.origin.layout.spec
        if world()[1] == 1:
            for leaves in self._spool:
                yield pytree.tree_unflatten(leaves, spec)
            return
        shares = gather(list(self._spool))
        for number in range(max(map(len, shares))):
            for share in shares:
                if number < len(share):
                    yield pytree.tree_unflatten(share[number], spec)

    @property
    def _progress(self) -> str:
        _, size = world()
        return f"{min(self._seen * size, self._batch_num)} of {self._batch_num} batches seen"

    def _note_progress(self) -> None:
        self._record_file.parent.mkdir(parents=True, exist_ok=True)
        write_unfinished_record(self._begun, self._record_file, self._progress)
        _logger.info("%s", self._progress)

    def _run(self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], number: int) -> Any:
        active = {station.watch.tap: station for station in self.stations if not station.finished}

        def receive(tap: Tap, tensor: torch.Tensor) -> None:
            station = active[tap]
            values = to_array(reduced(tensor.detach(), station))
            with self._lock, errors_about(f"{station.watch.label}, batch {number + 1}"):
                station.observe(values)

        seen_here = {tap: path for tap, path in self._by_hooks.items() if tap in active}
        with hooked(self.origin.module, seen_here, receive), torch.no_grad():
            return model(*args, **kwargs)

    def _finish(self, model: torch.nn.Module) -> None:
        done = 0
        while active := self._active(done):
            if done:
                for number, leaves in enumerate(self._spool):
                    args, kwargs = pytree.tree_unflatten(leaves, self.origin.layout.spec)
                    self._run(model, args, kwargs, number)
            self._run_graph(active)
            merge_stations(active)
            for station in active:
                with errors_about(station.watch.label):
                    station.end_pass(self._weight_maxima)
            done += 1
        outcome = self._conclude(self)
        on_writer(lambda: write_record_file(outcome.records, self._record_file))
        self._spool.clear()
        self.outcome = outcome
        _logger.info("%s is complete", self._record_file)

    def _active(self, done: int) -> list[Station]:
        if self._passes is not None and done >= self._passes:
            return []
        return [station for station in self.stations if not station.finished]

    def _run_graph(self, active: Sequence[Station]) -> None:
        """Let ONNX Runtime compute what no module reads, such as the inputs of functional layers."""
        stations = [station for station in active if station.watch.tap in set(self._by_graph)]
        if not stations:
            return
        run = run_graph(self.graph.model, taps_of(stations))
        for number, leaves in enumerate(self._spool):
            for station, (_, values) in zip(stations, run(self._feeds(leaves)), strict=True):
                with errors_about(f"{station.watch.label}, batch {number + 1}"):
                    for array in values:
                        station.observe(array)

    def _feeds(self, leaves: Sequence[Any]) -> dict[str, npt.NDArray[Any]]:
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return {name: to_array(leaf) for name, leaf in zip(self.origin.layout.names, tensors, strict=True)}
