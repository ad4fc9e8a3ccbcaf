"""Going through the data until every station has its factors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
import numpy.typing as npt

from twinquant.calibration.batches import errors_about, observe_batch, taps_of, too_few
from twinquant.calibration.digests import digest_batch
from twinquant.calibration.progress import Progress, Teller
from twinquant.calibration.resume import Checkpoint, Snapshot
from twinquant.calibration.shards import Shard, ShardResult, Subject, Workers
from twinquant.calibration.station import Station
from twinquant.data import DataSource
from twinquant.errors import DataError
from twinquant.registry.float_model import RunBatch, Tap

__all__ = ["Measurement", "measure"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Measurement(Subject):
    """What one calibration works on.

    Attributes:
        graph: the float model, fused.
        weight_maxima: gives the largest magnitude of a layer's weight for each input channel.
    """

    graph: Any
    weight_maxima: Callable[[str], npt.NDArray[np.float32]]


def measure(
    measurement: Measurement, checkpoint: Checkpoint, workers: Workers | None, tell: Progress
) -> tuple[list[Station], list[str]]:
    """Go through the data, as often as the algorithms need.

    Returns:
        the finished stations in the order of the watches, and the fingerprints of the batches.

    Raises:
        DataError: there are too few batches, or the data changed between two passes.
        CalibrationError: values give no factors.
    """
    source, batch_num = measurement.source, measurement.batch_num
    if source.count is not None and source.count < batch_num:
        raise too_few(source, source.count, batch_num)
    snapshot = checkpoint.load(measurement.watches)
    if snapshot is None or not _is_of_these_data(snapshot, source, batch_num):
        snapshot = Snapshot([Station(watch) for watch in measurement.watches])
    layers = len({layer for watch in measurement.watches for layer in watch.layers})
    most_passes = max((station.most_passes for station in snapshot.stations), default=1)
    teller = Teller(tell, layers, batch_num, most_passes)
    run: RunBatch | None = None
    taps: list[Tap] | None = None
    while True:
        active = [station for station in snapshot.stations if not station.finished]
        if not active:
            break
        one_pass = _OnePass(measurement, snapshot, active, checkpoint, teller)
        if workers is None:
            if run is None or taps != taps_of(active):
                # Let go of the old one first: both together would hold the weights twice.
                run, taps = None, taps_of(active)
                run = measurement.framework.activations(measurement.graph, taps)
            one_pass.here(run)
        else:
            one_pass.in_workers(workers)
        for station in active:
            with errors_about(station.watch.label):
                station.end_pass(measurement.weight_maxima)
        snapshot.number_of_pass += 1
        snapshot.done.clear()
    return snapshot.stations, [snapshot.digests[number] for number in range(batch_num)]


def _is_of_these_data(snapshot: Snapshot, source: DataSource, batch_num: int) -> bool:
    """Tell whether the batches that an earlier run saw are those of this data source: it reads them."""
    for number, seen in sorted(snapshot.digests.items()):
        feeds = source.batch(number)
        if feeds is None:
            raise too_few(source, number, batch_num)
        if digest_batch(feeds) != seen:
            _log.warning(
                "%s: batch %d is not the one that the calibration which was cut off saw; starting from the beginning",
                source.name,
                number + 1,
            )
            return False
    return True


@dataclass(frozen=True, slots=True, eq=False)
class _OnePass:
    """The rest of one pass over the data."""

    measurement: Measurement
    snapshot: Snapshot
    active: Sequence[Station]
    checkpoint: Checkpoint
    teller: Teller

    def here(self, run: RunBatch) -> None:
        """Go through the batches in this process, in their order."""
        measurement, done = self.measurement, self.snapshot.done
        for number in range(measurement.batch_num):
            if number in done:
                continue
            digest = observe_batch(run, measurement.source, number, measurement.batch_num, self.active)
            self._note(number, digest)
            done.add(number)
            self.checkpoint.save_sometimes(self.snapshot)
            self.teller.batches_done(self.snapshot.number_of_pass, len(done))

    def in_workers(self, workers: Workers) -> None:
        """Deal the batches out, and add what the workers accumulated."""
        measurement = self.measurement
        if measurement.model is None:
            raise DataError("workers need a model in a file, to load it themselves; save it and give its path")
        done = self.snapshot.done
        source = measurement.source.for_processes(measurement.batch_num)
        if source.count is not None and source.count < measurement.batch_num:
            raise too_few(source, source.count, measurement.batch_num)
        left = [number for number in range(measurement.batch_num) if number not in done]
        parts = [tuple(left[start :: workers.count]) for start in range(min(workers.count, len(left)))]
        forks = tuple(station.fork().state() for station in self.active)
        subject = Subject(
            framework=measurement.framework,
            model=measurement.model,
            fuse=measurement.fuse,
            skip_fusion=measurement.skip_fusion,
            watches=tuple(station.watch for station in self.active),
            source=source,
            batch_num=measurement.batch_num,
        )
        session = uuid4().hex if workers.keep_model else None
        shards = [
            Shard(subject=subject, states=forks, numbers=part, threads=workers.threads, session=session)
            for part in parts
        ]
        for result in workers.observe(shards):
            self._add(result)
            self.checkpoint.save_sometimes(self.snapshot)
            self.teller.batches_done(self.snapshot.number_of_pass, len(done), len(result.digests))

    def _add(self, result: ShardResult) -> None:
        for station, state in zip(self.active, result.states, strict=True):
            with errors_about(station.watch.label):
                station.merge(Station.restored(station.watch, state))
        for number, digest in result.digests.items():
            self._note(number, digest)
        self.snapshot.done.update(result.digests)

    def _note(self, number: int, digest: str) -> None:
        """Remember a batch's fingerprint, or compare it with that of an earlier pass."""
        if self.snapshot.digests.setdefault(number, digest) != digest:
            raise DataError(
                f"{self.measurement.source.name}: batch {number + 1} is not what it was in an earlier pass; the data "
                "must stay the same while calibration goes through it"
            )
