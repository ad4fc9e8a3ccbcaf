"""Several processes that calibrate one model: each sees its share of the batches, and all end with the same factors.

The processes are those of `torch.distributed`'s default group, such as `torchrun` starts; without one there is one
process. Every function here that communicates must be called by all of them.
"""

from __future__ import annotations

import contextlib
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch.distributed

from twinquant.calibration.observer import State
from twinquant.calibration.station import Station
from twinquant.errors import ArgumentError, CalibrationError, ConfigError, TwinQuantError

__all__ = [
    "PeerError",
    "gather",
    "is_writer",
    "merge_stations",
    "on_writer",
    "share_failure",
    "share_of",
    "together",
    "world",
]

_LONGEST_REASON = 300

T = TypeVar("T")


def world() -> tuple[int, int]:
    """Return this process's rank and how many processes there are: `(0, 1)` without a process group.

    Raises:
        ArgumentError: `torchrun` started several processes, and they have no process group.
    """
    if not torch.distributed.is_available():
        return 0, 1
    if torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    if torch.distributed.is_torchelastic_launched() and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ArgumentError(
            f"torchrun started {os.environ['WORLD_SIZE']} processes, but they do not know of each other yet; call "
            "torch.distributed.init_process_group() before anything is calibrated"
        )
    return 0, 1


def is_writer() -> bool:
    """Tell whether this process is the one that writes files: rank 0."""
    return world()[0] == 0


def share_of(batch_num: int) -> int:
    """Return how many of the batches this process goes through; the shares of all processes are `batch_num`.

    Args:
        batch_num: how many batches calibration sees in all.

    Raises:
        ConfigError: there are more processes than batches.
    """
    rank, size = world()
    if batch_num < size:
        raise ConfigError(
            f"batch_num is {batch_num}, but {size} processes calibrate together, and each needs a batch; "
            f"set batch_num to {size} or more, or start fewer processes",
            path="$.batch_num",
        )
    return batch_num // size + (rank < batch_num % size)


class PeerError(CalibrationError):
    """Another process failed or cannot be reached; those that can be reached know it already."""


@dataclass(frozen=True, slots=True, eq=False)
class _Letter:
    """What a process tells the others.

    Attributes:
        value: what was asked for.
        error: why there is no value; None: there is one.
    """

    value: Any
    error: TwinQuantError | None = None


def gather(value: T) -> list[T]:
    """Return the values of all processes, in the order of their ranks.

    Args:
        value: this process's; anything that can be pickled.

    Raises:
        PeerError: another process failed, or cannot be reached.
    """
    rank, size = world()
    if size == 1:
        return [value]
    letters = _exchange(_Letter(value))
    for other, letter in enumerate(letters):
        if letter.error is not None and other != rank:
            raise PeerError(f"process {other} failed: {letter.error}") from letter.error
    return [letter.value for letter in letters]


def share_failure(error: BaseException) -> None:
    """Let the other processes, which will ask for this one's values, know why there are none.

    Returns when they have asked, or when they cannot be reached.

    Args:
        error: why this process cannot go on; a `PeerError` is known to all others already.
    """
    if world()[1] == 1 or isinstance(error, PeerError):
        return
    told: TwinQuantError = CalibrationError(f"{type(error).__name__}: {error}")
    if isinstance(error, TwinQuantError):
        told = _plain(error)
    with contextlib.suppress(PeerError):
        _exchange(_Letter(None, told))


def _plain(error: TwinQuantError) -> TwinQuantError:
    """Return an error without its causes, which may hold what cannot be pickled."""
    return type(error)(str(error))


def _exchange(letter: _Letter) -> list[_Letter]:
    rank, size = world()
    # Values travel as bytes, on the device that the backend works with.
    letters: list[Any] = [None] * size
    try:
        torch.distributed.all_gather_object(letters, letter)
    except (RuntimeError, ValueError, EOFError, OSError, pickle.UnpicklingError) as error:
        # So do the backends tell of processes that have ended or do not answer in time.
        reason = " ".join(str(error).split())[:_LONGEST_REASON]
        raise PeerError(
            f"process {rank} waited for the {size - 1} other(s), and they cannot be reached: {reason}. Look for an "
            "earlier error of another process: all of them must run the calibration model on their share of the batches"
        ) from error
    return letters


def merge_stations(stations: Sequence[Station]) -> None:
    """Add to this process's stations what those of all others took in the same pass.

    Afterwards the stations of all processes are equal, and equal to those of one process that saw all batches. A
    process that saw none takes part with stations that took nothing.

    Args:
        stations: changed; those of all processes belong to the same watches, in the same order.

    Raises:
        CalibrationError: another process watches something else.
    """
    rank, size = world()
    if size == 1:
        return
    labels = [station.watch.label for station in stations]
    states = [station.state() for station in stations]
    parts: list[tuple[list[str], list[State]]] = gather((labels, states))
    for other, (theirs, _) in enumerate(parts):
        if theirs != labels:
            raise CalibrationError(
                f"process {rank} calibrates {len(labels)} activations, process {other} {len(theirs)}, or other ones; "
                "all processes need the same model and the same configuration"
            )
    # What stations accumulate does not depend on the order, so each process may begin with its own.
    for other, (_, theirs_states) in enumerate(parts):
        if other != rank:
            for station, state in zip(stations, theirs_states, strict=True):
                station.merge(Station.restored(station.watch, state))


def on_writer(write: Callable[[], None]) -> None:
    """Let rank 0 write; the other processes go on when it is done.

    Args:
        write: is called in rank 0 only.

    Raises:
        TwinQuantError: `write` raised it, in rank 0; every process raises it.
        PeerError: another process failed, or cannot be reached.
    """
    rank, size = world()
    if size == 1:
        write()
        return
    failure: TwinQuantError | None = None
    try:
        if rank == 0:
            write()
    except TwinQuantError as error:
        failure = error
    for other, found in enumerate(gather(None if failure is None else _plain(failure))):
        if found is not None:
            raise failure if failure is not None and other == rank else found


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Do what all processes do: where one of them fails, the others are told why instead of waiting for it."""
    try:
        yield
    except BaseException as error:
        share_failure(error)
        raise
