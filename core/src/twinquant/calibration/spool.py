"""The batches that a modified model was fed, kept in a folder until there are enough."""

from __future__ import annotations

import os
import secrets
import shutil
from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.data import DataSource, Feeds
from twinquant.errors import ArgumentError

__all__ = ["BatchSpool", "remove_batches"]

Array = npt.NDArray[Any]

_TOKEN = secrets.token_hex(16)
_OWNER = "process.txt"
_FAILURE = "failure.txt"


class BatchSpool(DataSource):
    """The stored batches of one process, in the order in which they came.

    Nothing is kept in memory. Batches of one process count together, whichever session or net ran them; those that
    another process left behind are dropped when this one opens the folder: a script that is started again starts again.

    Args:
        folder: where the batches are; need not exist.
        names: the names of the inputs, in the order in which they arrive; at least one.

    Raises:
        ArgumentError: there is no name: no file would tell how many batches there are.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        if not names:
            raise ArgumentError(f"batches of no input cannot be stored in {str(folder)!r}; name at least one input")
        self.name = "the batches that the modified model has seen"
        self.folder = folder
        self._names = tuple(names)

    @property
    def count(self) -> int:
        """How many batches there are, all their inputs included."""
        beyond = 1
        while self._is_whole(beyond - 1):
            beyond *= 2
        return bisect_left(range(beyond), True, key=lambda number: not self._is_whole(number))

    @property
    def outline(self) -> str:
        """The number of batches and the names of the inputs."""
        return f"{self.count} batches of {', '.join(self._names)}"

    def batch(self, number: int) -> Feeds | None:
        """Read one batch."""
        if not self._is_whole(number):
            return None
        files = (self._file(number, index) for index in range(len(self._names)))
        arrays = (np.load(file, allow_pickle=False) for file in files)
        return dict(zip(self._names, arrays, strict=True))

    @property
    def is_open(self) -> bool:
        """Whether the folder is this process's. One whose removal was cut off is nobody's."""
        owner = self.folder / _OWNER
        return owner.is_file() and owner.read_text() == _this_process()

    def open(self) -> int:
        """Take the folder over for this process and return how many batches were dropped.

        Raises:
            OSError: the folder cannot be made or emptied.
        """
        if self.is_open:
            return 0
        dropped = self.count
        self.clear()
        self.folder.mkdir(parents=True)
        (self.folder / _OWNER).write_text(_this_process())
        return dropped

    def add(self, arrays: Sequence[Array]) -> None:
        """Store one batch.

        Args:
            arrays: one array for each name.

        Raises:
            OSError: the disk is full or not writable.
        """
        number = self.count
        for index, array in enumerate(arrays):
            self._write(number, index, array)

    def add_input(self, name: str, array: Array) -> bool:
        """Store one input of the next batch, and return whether that completes it.

        What was stored for this input before, in a batch that was cut off, is replaced.

        Raises:
            OSError: the disk is full or not writable.
        """
        number = self.count
        self._write(number, self._names.index(name), array)
        return self._is_whole(number)

    def clear(self) -> None:
        """Remove the folder."""
        remove_batches(self.folder)

    def fail(self, reason: str) -> None:
        """Note why the batches cannot be used."""
        (self.folder / _FAILURE).write_text(reason, encoding="utf-8")

    def failure(self) -> str | None:
        """Return why the batches cannot be used; None if nothing was noted."""
        file = self.folder / _FAILURE
        return file.read_text(encoding="utf-8") if file.is_file() else None

    def _is_whole(self, number: int) -> bool:
        return all(self._file(number, index).is_file() for index in range(len(self._names)))

    def _write(self, number: int, index: int, array: Array) -> None:
        target = self._file(number, index)
        part = target.with_suffix(".part")
        with part.open("wb") as file:
            np.save(file, array, allow_pickle=False)
        part.replace(target)

    def _file(self, number: int, index: int) -> Path:
        return self.folder / f"{number:08d}.{index}.npy"


def remove_batches(folder: Path) -> None:
    """Remove the folder of a spool, of whatever inputs it is; where there is none, nothing happens."""
    # First what says whose it is: a folder whose removal is cut off is nobody's.
    (folder / _OWNER).unlink(missing_ok=True)
    if folder.exists():
        shutil.rmtree(folder)


def _this_process() -> str:
    return f"{os.getpid()} {_TOKEN}"  # a fork has the token of its parent, and a later process may have the number
