"""The batches that a modified model was fed, kept in a folder until there are enough."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.data import DataSource, Feeds

__all__ = ["BatchSpool"]

Array = npt.NDArray[Any]

_THIS_PROCESS = secrets.token_hex(16)
_OWNER = "process.txt"
_FAILURE = "failure.txt"


class BatchSpool(DataSource):
    """The stored batches of one process, in the order in which they came.

    Nothing is kept in memory. Batches of one process count together, whichever session ran them; those that another
    process left behind are dropped when this one opens the folder: a script that is started again starts again.

    Args:
        folder: where the batches are; need not exist.
        names: the names of the inputs.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self.name = "the batches that the modified model has seen"
        self.folder = folder
        self._names = tuple(names)

    @property
    def count(self) -> int:
        """How many batches there are."""
        return sum(1 for _ in self.folder.glob("*.npz"))

    @property
    def outline(self) -> str:
        """The number of batches and the names of the inputs."""
        return f"{self.count} batches of {', '.join(self._names)}"

    def batch(self, number: int) -> Feeds | None:
        """Read one batch."""
        file = self._file(number)
        if not file.exists():
            return None
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[f"input{index}"] for index, name in enumerate(self._names)}

    def open(self) -> int:
        """Take the folder over for this process and return how many batches were dropped.

        Raises:
            OSError: the folder cannot be made or emptied.
        """
        owner = self.folder / _OWNER
        if owner.is_file() and owner.read_text() == _THIS_PROCESS:
            return 0
        dropped = self.count
        self.clear()
        self.folder.mkdir(parents=True)
        owner.write_text(_THIS_PROCESS)
        return dropped

    def add(self, arrays: Sequence[Array]) -> None:
        """Store one batch.

        Args:
            arrays: one array for each name.

        Raises:
            OSError: the disk is full or not writable.
        """
        target = self._file(self.count)
        part = target.with_suffix(".part")
        with part.open("wb") as file:
            named: dict[str, Any] = {f"input{index}": array for index, array in enumerate(arrays)}
            np.savez(file, **named)
        part.replace(target)

    def clear(self) -> None:
        """Remove the folder."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def fail(self, reason: str) -> None:
        """Note why the batches cannot be used."""
        (self.folder / _FAILURE).write_text(reason, encoding="utf-8")

    def failure(self) -> str | None:
        """Return why the batches cannot be used; None if nothing was noted."""
        file = self.folder / _FAILURE
        return file.read_text(encoding="utf-8") if file.is_file() else None

    def _file(self, number: int) -> Path:
        return self.folder / f"{number:08d}.npz"
