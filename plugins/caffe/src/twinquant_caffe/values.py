"""The values of a blob, read in blocks when they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from twinquant.errors import ModelFileError
from twinquant_caffe.schema import DATA, DOUBLE_DATA

__all__ = ["ArrayValues", "FileValues", "Span", "Stored", "Values"]

BLOCK = 1 << 20
"""Elements in a block."""

_FIELDS = {np.dtype("<f4"): DATA, np.dtype("<f8"): DOUBLE_DATA}


class Stored(Protocol):
    """A field of BlobProto that holds values: what the writer writes."""

    @property
    def field(self) -> int:
        """BlobProto's field number: 5 data, 8 double_data, 10 int8_data, 11 int32_data, 12 uint64_data."""

    @property
    def size(self) -> int:
        """How many values there are."""

    @property
    def payload_size(self) -> int:
        """How many bytes the encoded values take."""

    def payload(self) -> Iterator[bytes | memoryview]:
        """Yield the encoded values in blocks."""


@runtime_checkable
class Values(Stored, Protocol):
    """Float values."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type they are stored with: float32 or float64."""

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return the values [start, stop) in memory order: float32, shape `(stop - start,)`, writable."""


@dataclass(frozen=True, slots=True, eq=False)
class ArrayValues:
    """Values in memory.

    Attributes:
        array: float32 or float64, any shape, in C order.
    """

    array: npt.NDArray[Any]

    @property
    def size(self) -> int:
        """How many there are."""
        return self.array.size

    @property
    def dtype(self) -> np.dtype[Any]:
        """The type they are stored with, little-endian."""
        little_endian: np.dtype[Any] = self.array.dtype.newbyteorder("<")
        return little_endian

    @property
    def field(self) -> int:
        """BlobProto's field for them."""
        return _FIELDS[self.dtype]

    @property
    def payload_size(self) -> int:
        """How many bytes they take."""
        return self.array.nbytes

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return a copy of some of them: float32, shape `(stop - start,)`."""
        return self.array.reshape(-1)[start:stop].astype(np.float32)

    def payload(self) -> Iterator[bytes | memoryview]:
        """Yield their bytes in blocks."""
        flat = self.array.reshape(-1)
        for start in range(0, flat.size, BLOCK):
            yield np.ascontiguousarray(flat[start : start + BLOCK], self.dtype).data.cast("B")


@dataclass(frozen=True, slots=True)
class Span:
    """Where a run of values lies in a file.

    Attributes:
        offset: where the run starts, in bytes.
        count: how many values it holds.
        gap: bytes before each value that are none of it: the tag of a value that is not packed; 0 in a packed run.
    """

    offset: int
    count: int
    gap: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class FileValues:
    """Values that stay in their file.

    Attributes:
        path: the file. It is opened for each reading, and must not change meanwhile.
        spans: where the values lie, in their order.
        dtype: little-endian float32 or float64.
    """

    path: Path
    spans: tuple[Span, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """How many there are."""
        return sum(span.count for span in self.spans)

    @property
    def field(self) -> int:
        """BlobProto's field for them."""
        return _FIELDS[self.dtype]

    @property
    def payload_size(self) -> int:
        """How many bytes they take, packed."""
        return self.size * self.dtype.itemsize

    def read(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return some of them: float32, shape `(stop - start,)`.

        Raises:
            ModelFileError: the file is shorter than it was, or cannot be read any more.
        """
        return self._stored(start, stop).astype(np.float32, copy=False)

    def payload(self) -> Iterator[bytes | memoryview]:
        """Yield their bytes in blocks.

        Raises:
            ModelFileError: the file is shorter than it was, or cannot be read any more.
        """
        size = self.size
        for start in range(0, size, BLOCK):
            yield self._stored(start, min(start + BLOCK, size)).data.cast("B")

    def _stored(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Return values as they are stored."""
        if not 0 <= start <= stop <= self.size:
            raise IndexError(f"values {start} to {stop} of {self.size} were asked for")
        values = np.empty(stop - start, self.dtype)
        first = 0
        try:
            with self.path.open("rb", buffering=0) as file:
                for span in self.spans:
                    low, high = max(start, first), min(stop, first + span.count)
                    if low < high:
                        stride = span.gap + self.dtype.itemsize
                        file.seek(span.offset + (low - first) * stride)
                        target = values[low - start : high - start]
                        raw = np.empty((high - low, stride), np.uint8) if span.gap else target.view(np.uint8)
                        self._fill(raw.reshape(-1).data, file)
                        if span.gap:
                            target[:] = np.ascontiguousarray(raw[:, span.gap :]).view(self.dtype)[:, 0]
                    first += span.count
        except OSError as error:
            raise ModelFileError(f"caffemodel {str(self.path)!r} cannot be read any more: {error}") from error
        return values

    def _fill(self, target: memoryview, file: Any) -> None:
        done = 0
        while done < len(target):
            count = file.readinto(target[done:])
            if not count:
                raise ModelFileError(
                    f"caffemodel {str(self.path)!r} is shorter than it was when it was loaded; load it again"
                )
            done += count
