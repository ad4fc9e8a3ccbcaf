"""Several processes that calibrate one model: each sees its share of the batches, and all end with the same factors.

The processes are those of `torch.distributed`'s default group, such as `torchrun` starts; without one there is one
process. Every function here that communicates must be called by all of them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch.distributed

from twinquant.calibration.observer import State
from twinquant.calibration.station import Station
from twinquant.errors import ArgumentError, CalibrationError, ConfigError, TwinQuantError

__all__ = ["gather", "is_writer", "merge_stations", "on_writer", "share_of", "world"]

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


def gather(value: T) -> list[T]:
    """Return the values of all processes, in the order of their ranks.

    Args:
        value: this process's; anything that can be pickled.
    """
    _, size = world()
    if size == 1:
        return [value]
    # Values travel as bytes, on the device that the backend works with.
    values: list[Any] = [None] * size
    torch.distributed.all_gather_object(values, value)
    return values


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
    """
    rank, size = world()
    if size == 1:
        write()
        return
    outcome: list[TwinQuantError | None] = [None]
    try:
        if rank == 0:
            write()
    except TwinQuantError as error:
        outcome = [error]
        raise
    finally:
        torch.distributed.broadcast_object_list(outcome, src=0)
    if outcome[0] is not None:
        raise outcome[0]
