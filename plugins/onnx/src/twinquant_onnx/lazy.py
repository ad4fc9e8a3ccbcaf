"""Tensor bytes that an object in memory hands out whole."""

from __future__ import annotations

from collections.abc import Callable

from twinquant.errors import ModelFileError
from twinquant_onnx.tensors import Bytes, RandomAccess

__all__ = ["LazyBytes"]


class LazyBytes(RandomAccess):
    """The bytes of a tensor of another library's object: fetched by the first read, dropped by `close`.

    Attributes:
        nbytes: how many bytes `fetch` returns.
    """

    def __init__(self, nbytes: int, fetch: Callable[[], Bytes]) -> None:
        self.nbytes = nbytes
        self._fetch = fetch
        self._bytes: Bytes | None = None

    def read_into(self, start: int, out: Bytes) -> None:
        """Copy from the fetched bytes."""
        if self._bytes is None:
            fetched = self._fetch()
            if fetched.size != self.nbytes:
                raise ModelFileError(f"a tensor was expected to hold {self.nbytes} bytes, but holds {fetched.size}")
            self._bytes = fetched
        out[:] = self._bytes[start : start + out.size]

    def close(self) -> None:
        """Drop the bytes; the next read fetches them again."""
        self._bytes = None
