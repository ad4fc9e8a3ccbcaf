"""One part of a pass, as another process does it: everything it needs goes in, and what it accumulated comes out.

A `Shard` can be pickled, and `observe_shard` is a plain function: any engine that runs functions elsewhere can run it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import numpy as np

from twinquant.calibration.batches import observe_batch, taps_of
from twinquant.calibration.observer import State
from twinquant.calibration.station import Station
from twinquant.calibration.watches import Watch
from twinquant.data import DataSource
from twinquant.errors import ArgumentError, CalibrationError
from twinquant.registry import Framework
from twinquant.registry.float_model import RunBatch

__all__ = ["Shard", "ShardResult", "Subject", "Workers", "check_workers", "observe_shard", "open_workers"]

_SHARDS_OF_AN_ENGINE = 16
_SHARDS_OF_A_PROCESS = 8
"""More shards than processes: a pass that is cut off loses a shard, and the progress moves with each."""


@dataclass(frozen=True, slots=True, eq=False)
class Subject:
    """What is calibrated with what, as another process can be told.

    Attributes:
        framework: the framework, with its options.
        model: the float model's file, or its files; None: it has none, and no other process can load it.
        fuse: whether normalizations are folded into the layers before them.
        skip_fusion: the layers into which nothing is folded.
        watches: what is watched.
        source: the data.
        batch_num: how many batches are gone through.
    """

    framework: Framework
    model: str | tuple[str, ...] | None
    fuse: bool
    skip_fusion: tuple[str, ...]
    watches: tuple[Watch, ...]
    source: DataSource
    batch_num: int


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Shard:
    """Some batches of one pass.

    Attributes:
        subject: what is calibrated; its watches are those that this pass is for.
        states: what the stations of the watches start from: forks.
        numbers: which batches.
        threads: threads of the framework's runtime; None: its own choice.
        session: a name that the shards of one pass have in common: the model that is opened for one of them is kept
            for the next one in the same process; None: nothing is kept.
    """

    subject: Subject
    states: tuple[State, ...]
    numbers: tuple[int, ...]
    threads: int | None
    session: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class ShardResult:
    """What became of a shard.

    Attributes:
        states: what the stations hold now.
        digests: the fingerprints of the batches, by number.
    """

    states: tuple[State, ...]
    digests: dict[int, str]


def observe_shard(shard: Shard) -> ShardResult:
    """Load the model, go through the shard's batches and return what was accumulated."""
    subject = shard.subject
    stations = [Station.restored(watch, state) for watch, state in zip(subject.watches, shard.states, strict=True)]
    run = _opened(shard, stations)
    digests = {
        number: observe_batch(run, subject.source, number, subject.batch_num, stations) for number in shard.numbers
    }
    return ShardResult(tuple(station.state() for station in stations), digests)


_kept: dict[str, RunBatch] = {}
"""The last model that this process opened, by the session of its shards. A process of a pool has no other place between
two shards, and opening a large model takes longer than a shard."""


def _opened(shard: Shard, stations: Sequence[Station]) -> RunBatch:
    if shard.session in _kept:
        return _kept[shard.session]
    _kept.clear()
    framework = shard.subject.framework
    graph = framework.load(shard.subject.model)
    if shard.subject.fuse:
        graph, _ = framework.fuse(graph, shard.subject.skip_fusion)
    run = framework.activations(graph, taps_of(stations), threads=shard.threads)
    if shard.session is not None:
        _kept[shard.session] = run
    return run


@dataclass(frozen=True, slots=True, eq=False)
class Workers:
    """Where shards run.

    Attributes:
        executor: runs them.
        count: into how many shards a pass is cut.
        threads: threads of the framework's runtime in each; None: its own choice.
        keep_model: its processes are ours, run one shard at a time, and end with the calibration.
    """

    executor: Executor
    count: int
    threads: int | None
    keep_model: bool = False

    def observe(self, shards: list[Shard]) -> Iterator[ShardResult]:
        """Run shards and yield their results as they come.

        Raises:
            CalibrationError: a worker process ended on its own.
        """
        futures = [self.executor.submit(observe_shard, shard) for shard in shards]
        try:
            # Futures of other engines are none of the standard library's, which `as_completed` needs.
            for future in as_completed(futures) if isinstance(self.executor, ProcessPoolExecutor) else futures:
                yield future.result()
        except BrokenProcessPool as error:
            raise CalibrationError(
                "a worker process ended before its time: it was killed (is there enough memory?), or the script that "
                "calibrates starts anew in every worker: put the call under if __name__ == '__main__'"
            ) from error
        finally:
            for future in futures:
                future.cancel()


def check_workers(workers: Any) -> int | Executor:
    """Return what a user asks shards to run on, if it can be.

    Raises:
        ArgumentError: it is neither a whole number above 0 nor an executor.
    """
    if isinstance(workers, Executor):
        return workers
    if isinstance(workers, (int, np.integer)) and not isinstance(workers, bool) and workers > 0:
        return int(workers)
    raise ArgumentError(
        f"workers: must be a whole number above 0, or a concurrent.futures.Executor, got {workers!r:.80}"
    )


@contextmanager
def open_workers(workers: int | Executor) -> Iterator[Workers | None]:
    """Give what shards run on: None for one process, new processes for a number, an executor as it is."""
    if not isinstance(workers, int):
        yield Workers(workers, _SHARDS_OF_AN_ENGINE, None)
        return
    if workers == 1:
        yield None
        return
    # A forked process would share the threads' locks of its parent, but not the threads.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        threads = max(1, (os.cpu_count() or 1) // workers)
        yield Workers(pool, workers * _SHARDS_OF_A_PROCESS, threads, keep_model=True)
