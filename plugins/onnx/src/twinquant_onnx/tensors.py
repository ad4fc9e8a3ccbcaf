"""Where the bytes of tensors come from: weights stay in files until they are written, and then pass in blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.errors import ModelFileError

__all__ = ["IO_BYTES", "ArrayBytes", "FileRange", "RandomAccess", "TensorBytes"]

IO_BYTES = 1 << 20
"""Size of one block when bytes are only passed on."""

Bytes = npt.NDArray[np.uint8]


class TensorBytes(ABC):
    """The bytes of one tensor as ONNX stores them (`raw_data`: little endian, C order), produced in blocks.

    Attributes:
        nbytes: how many bytes `blocks` yields in all; known without producing them.
    """

    nbytes: int

    @abstractmethod
    def blocks(self) -> Iterator[Bytes]:
        """Yield the bytes in order, uint8 `(n,)` each. A block is valid only until the next one is asked for.

        Raises:
            ModelContentError: the bytes are computed, and the values they come from cannot be.
            ModelFileError: a file is shorter than it was.
        """


class RandomAccess(TensorBytes):
    """Bytes that exist, in a file or in memory, and can be read at any place."""

    @abstractmethod
    def read_into(self, start: int, out: Bytes) -> None:
        """Fill `out` (uint8, contiguous) with the bytes from `start` on."""

    def read_all(self) -> Bytes:
        """Return all bytes, uint8 `(nbytes,)`, and close. For tensors that fit into memory."""
        raw = np.empty(self.nbytes, np.uint8)
        try:
            self.read_into(0, raw)
        finally:
            self.close()
        return raw

    def blocks(self) -> Iterator[Bytes]:
        """Yield the bytes in blocks of at most `IO_BYTES`, and close."""
        buffer = np.empty(min(self.nbytes, IO_BYTES), np.uint8)
        try:
            for start in range(0, self.nbytes, IO_BYTES):
                part = buffer[: min(IO_BYTES, self.nbytes - start)]
                self.read_into(start, part)
                yield part
        finally:
            self.close()

    def close(self) -> None:
        """Release what reading keeps open; the next read opens it again."""


class FileRange(RandomAccess):
    """A range of bytes of a file. Read with ordinary reads, not mapped: mapped pages would count as used memory.

    Attributes:
        path: the file.
        offset: where in the file the tensor starts, in bytes.
    """

    def __init__(self, path: Path, offset: int, nbytes: int) -> None:
        self.path = path
        self.offset = offset
        self.nbytes = nbytes
        self._file: Any = None

    def read_into(self, start: int, out: Bytes) -> None:
        """Fill `out` from the file; the file stays open between reads of one source."""
        if self._file is None:
            self._file = self.path.open("rb", buffering=0)
        view = out.data
        self._file.seek(self.offset + start)
        while len(view):
            count = self._file.readinto(view)
            if not count:
                raise ModelFileError(
                    f"{str(self.path)!r} ends before byte {self.offset + start + len(out)}: it is truncated"
                )
            view = view[count:]

    def close(self) -> None:
        """Close the file; the next read opens it again."""
        if self._file is not None:
            self._file.close()
            self._file = None


class ArrayBytes(RandomAccess):
    """The bytes of an array in memory.

    Attributes:
        array: the array as it was given; C order is taken when bytes are read.
    """

    def __init__(self, array: npt.NDArray[Any]) -> None:
        self.array = np.ascontiguousarray(array).reshape(array.shape)
        self.nbytes = self.array.nbytes

    def read_into(self, start: int, out: Bytes) -> None:
        """Copy from the array."""
        out[:] = self.array.reshape(-1).view(np.uint8)[start : start + out.size]
