"""The batches that a calibration has seen, kept for further passes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from twinquant_torch.export import ScratchFolder
from twinquant_torch.working_copy import cloned

__all__ = ["InputSpool"]

_MOST_MEMORY = 256 << 20


class InputSpool:
    """Leaves of calls, in the order in which they came: in memory while they are small, then in temporary files.

    Whoever goes through it gets copies, and may change them.
    """

    def __init__(self) -> None:
        self._kept: list[list[Any] | Path] = []
        self._nbytes = 0
        self._folder: ScratchFolder | None = None

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[list[Any]]:
        for item in self._kept:
            yield torch.load(item, weights_only=True) if isinstance(item, Path) else cloned(item)

    def add(self, copies: list[Any]) -> None:
        """Keep the leaves of one call; they must be nobody else's, see `cloned`."""
        nbytes = sum(leaf.nbytes for leaf in copies if isinstance(leaf, torch.Tensor))
        if self._nbytes + nbytes <= _MOST_MEMORY:
            self._nbytes += nbytes
            self._kept.append(copies)
            return
        if self._folder is None:
            self._folder = ScratchFolder()
        path = self._folder.path / f"{len(self._kept):08d}.pt"
        torch.save(copies, path)
        self._kept.append(path)

    def clear(self) -> None:
        """Let everything go."""
        self._kept.clear()
        self._nbytes, self._folder = 0, None
