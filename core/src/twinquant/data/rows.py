"""Arrays whose first axis is read piece by piece: in memory, in an .npy file, in an .npz archive."""

from __future__ import annotations

import threading
import zipfile
import zlib
from math import prod
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
import numpy.typing as npt

from twinquant.errors import DataError

__all__ = ["READ_ERRORS", "FileRows", "MemoryRows", "Rows", "npz_members", "unreadable"]

Array = npt.NDArray[Any]

READ_ERRORS = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)
"""What reading an .npy or .npz file raises that is damaged or something else."""

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


class Rows(Protocol):
    """An array that need not be in memory.

    Attributes:
        shape: its shape.
    """

    shape: tuple[int, ...]

    def read(self, start: int, stop: int) -> Array:
        """Return the rows from `start` to `stop`."""

    def close(self) -> None:
        """Close what reading keeps open; the next read opens it again."""


class MemoryRows:
    """An array in memory.

    Attributes:
        shape: its shape.
    """

    def __init__(self, array: Array) -> None:
        self._array = array
        self.shape: tuple[int, ...] = array.shape

    def read(self, start: int, stop: int) -> Array:
        """Return a view; a scalar is its only row."""
        return self._array[start:stop] if self.shape else self._array

    def close(self) -> None:
        """Do nothing."""


class FileRows:
    """An array in an .npy file or in a member of an .npz archive; only the rows that are asked for are read.

    Several threads may read it at a time.

    Attributes:
        shape: its shape.
    """

    def __init__(self, path: Path, member: str | None = None) -> None:
        """Read the header.

        Raises:
            DataError: the file is missing or damaged, or holds no plain array.
        """
        self._path, self._member = path, member
        self._stream: IO[bytes] | None = None
        # A read is a seek and a read of one stream.
        self._lock = threading.RLock()
        try:
            stream = self._open()
            version = np.lib.format.read_magic(stream)
            if version not in _HEADERS:
                raise ValueError(f"its format has version {version}")
            self.shape, self._by_columns, self._dtype = _HEADERS[version](stream)
            self._start = stream.tell()
            if self._dtype.hasobject:
                raise ValueError("it holds Python objects, not numbers")
        except READ_ERRORS as error:
            raise unreadable(path, error) from error
        finally:
            self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_stream", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._stream, self._lock = None, threading.RLock()

    def read(self, start: int, stop: int) -> Array:
        """Return rows, read from the file. An array that is stored by columns is read whole each time.

        Raises:
            DataError: the file has changed or is damaged.
        """
        if self._by_columns and len(self.shape) > 1:
            whole = self._values(0, prod(self.shape)).reshape(self.shape, order="F")
            return np.ascontiguousarray(whole[start:stop])
        row = prod(self.shape[1:])
        return self._values(start * row, (stop - start) * row).reshape(stop - start, *self.shape[1:])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            if self._stream is not None:
                self._stream.close()
                self._stream = None

    def _values(self, start: int, count: int) -> Array:
        nbytes = count * self._dtype.itemsize
        with self._lock:
            try:
                stream = self._stream or self._open()
                stream.seek(self._start + start * self._dtype.itemsize)
                data = stream.read(nbytes)
                if len(data) != nbytes:
                    raise EOFError("it is truncated")
            except READ_ERRORS as error:
                self.close()
                raise unreadable(self._path, error) from error
        return np.frombuffer(data, self._dtype)

    def _open(self) -> IO[bytes]:
        if self._member is None:
            self._stream = self._path.open("rb")
        else:
            with zipfile.ZipFile(self._path) as archive:  # the member keeps the file open until it is closed itself
                self._stream = archive.open(f"{self._member}.npy")
        return self._stream


def npz_members(path: Path) -> list[str]:
    """List the names of the arrays in an .npz archive.

    Raises:
        DataError: the file is missing or no archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except READ_ERRORS as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: Exception) -> DataError:
    """Return the error about a file that cannot be read as an array."""
    kind = "an .npz archive of plain arrays" if path.suffix.lower() == ".npz" else "an .npy file of a plain array"
    # NumPy takes everything that it does not know for pickled objects.
    reason = "it is damaged, or holds Python objects" if "pickle" in str(error) else str(error)
    return DataError(f"data: {str(path)!r} cannot be read as {kind}: {reason}")
