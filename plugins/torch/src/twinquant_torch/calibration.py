"""The module that calibrates while it runs: hooks feed the core's observers, batch after batch."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils import _pytree as pytree

from twinquant.calibration.batches import errors_about, observe_values, taps_of
from twinquant.calibration.station import Station
from twinquant.errors import ArgumentError, CalibrationError, RecordFileError, TwinQuantError, UnsupportedModelError
from twinquant.records import RecordSet, write_record_file, write_unfinished_record
from twinquant_torch.activations import split_taps
from twinquant_torch.batch import BatchValues
from twinquant_torch.distributed import (
    gather,
    is_writer,
    merge_stations,
    on_writer,
    share_failure,
    share_of,
    world,
)
from twinquant_torch.folders import make_folder
from twinquant_torch.graph import TorchGraph, TorchOrigin
from twinquant_torch.graph_run import run_graph
from twinquant_torch.hooks import hooked
from twinquant_torch.inputs import Call, device_of
from twinquant_torch.spool import InputSpool
from twinquant_torch.tensors import to_array
from twinquant_torch.working_copy import cloned

__all__ = ["Calibration", "CalibrationModule", "Outcome"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What a calibration ends with.

    Attributes:
        records: the factors.
        graph: what they are for; None: they are balance factors only, which nothing can be saved with.
    """

    records: RecordSet
    graph: TorchGraph | None


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
        for path, inner in self.named_modules():
            if inner.training:
                what = f"{path.removeprefix('model.')!r} in the calibration model" if path else "the calibration model"
                raise UnsupportedModelError(
                    f"{what} was put into training mode, where BatchNormalization uses the statistics of each batch "
                    "and Dropout is active; call .eval() on the calibration model"
                )
        return self.calibration.see(self.model, args, kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Refuse to be copied and stored: there is one record for one module.

        Raises:
            ArgumentError: always.
        """
        raise ArgumentError(
            "a calibration model cannot be copied or stored: it fills one record as it runs; copy or store "
            "calibration_model.model, or its state_dict()"
        )


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
        """Run one batch and look at it; return what the model returns. With the last batch, write the record.

        A batch that the model fails on does not count, and leaves nothing behind.
        """
        if self._failure is not None:
            raise CalibrationError(self._failure)
        leaves = self.origin.layout.leaves_of(args, kwargs, device_of(self.origin.module))
        # Before the model runs, which may change its inputs.
        first = self._keeps_first and self.first_batch is None
        kept = cloned(leaves) if self._keeps_all or first else None
        values = BatchValues(self.stations, _number_of(self._seen))
        output = self._run(model, args, kwargs, values)
        try:
            values.commit()
            if kept is not None and self._keeps_all:
                self._spool.add(kept)
            if kept is not None and first:
                self.first_batch = self._feeds(cloned(kept))
            self._seen += 1
            if self._seen < self._share:
                if is_writer():
                    self._note_progress()
            else:
                with torch.inference_mode(False), torch.no_grad():
                    self._finish(model)
        except BaseException as error:  # what is half done cannot be gone on with
            self._fail(error)
            raise
        return output

    def _fail(self, error: BaseException) -> None:
        """End the calibration; the record says why, and other processes are told."""
        self._failure = str(error) if isinstance(error, TwinQuantError) else f"{type(error).__name__}: {error}"
        share_failure(error)
        if is_writer():
            with contextlib.suppress(OSError, TwinQuantError):
                write_unfinished_record(self._begun, self._record_file, self._failure)

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
        make_folder(self._record_file)
        write_unfinished_record(self._begun, self._record_file, self._progress)
        _logger.info("%s", self._progress)

    def _run(
        self, model: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], values: BatchValues
    ) -> Any:
        """Run a batch, and let hooks give what they see."""
        seen_here = {tap: path for tap, path in self._by_hooks.items() if tap in values.taps}
        with hooked(self.origin.module, seen_here, values.receive), torch.no_grad():
            return model(*args, **kwargs)

    def _finish(self, model: torch.nn.Module) -> None:
        done = 0
        while active := self._active(done):
            if done:
                with self.origin.copy.undisturbed():
                    for number, leaves in enumerate(self._spool):
                        args, kwargs = pytree.tree_unflatten(leaves, self.origin.layout.spec)
                        values = BatchValues(self.stations, _number_of(number), direct=True)
                        self._run(model, args, kwargs, values)
                        values.commit()
            self._run_graph(active)
            merge_stations(active)
            for station in active:
                with errors_about(station.watch.label):
                    station.end_pass(self._weight_maxima)
            done += 1
        outcome = self._conclude(self)
        on_writer(lambda: self._write(outcome.records))
        self._spool.clear()
        self.outcome = outcome
        _logger.info("%s is complete", self._record_file)

    def _write(self, records: RecordSet) -> None:
        make_folder(self._record_file)
        write_record_file(records, self._record_file)

    def _active(self, done: int) -> list[Station]:
        if self._passes is not None and done >= self._passes:
            return []
        return [station for station in self.stations if not station.finished]

    def _run_graph(self, active: Sequence[Station]) -> None:
        """Let ONNX Runtime compute what no module reads, such as the inputs of functional layers."""
        stations = [station for station in active if station.watch.tap in set(self._by_graph)]
        if not stations:
            return
        run = run_graph(self.graph, taps_of(stations))
        for number, leaves in enumerate(self._spool):
            observe_values(run, self._feeds(leaves), stations, _number_of(number))

    def _feeds(self, leaves: Sequence[Any]) -> dict[str, npt.NDArray[Any]]:
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        return {name: to_array(leaf) for name, leaf in zip(self.origin.layout.names, tensors, strict=True)}


def _number_of(own: int) -> int:
    """Return the number, among the batches of all processes, of this process's own one: they take turns."""
    rank, size = world()
    return own * size + rank
