"""Data that Python hands over batch by batch: sequences, generators, data loaders."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import IO, Any

import numpy as np

from twinquant.data.feeds import make_feeds
from twinquant.data.source import DataSource, Feeds
from twinquant.errors import DataError, OutputWriteError
from twinquant.registry.float_model import ModelInput

__all__ = ["SequenceSource", "StreamSource", "length_of"]

_NAME = "data"


def length_of(items: Any) -> int | None:
    """Return how many items something says that it has; None where it does not know.

    A class may have `__len__` for those of its instances that know: torch's `DataLoader` over a stream raises
    TypeError.
    """
    try:
        return len(items) if isinstance(items, Sized) else None
    except (TypeError, NotImplementedError):
        return None


class SequenceSource(DataSource):
    """A list or tuple of batches."""

    name = _NAME

    def __init__(self, items: Sequence[Any], inputs: Sequence[ModelInput]) -> None:
        self._items, self._inputs = items, tuple(inputs)

    @property
    def count(self) -> int:
        """How many batches there are."""
        return len(self._items)

    @property
    def outline(self) -> str:
        """The number of batches: more is not known before they are looked at."""
        return f"{len(self._items)} batches in memory"

    def batch(self, number: int) -> Feeds | None:
        """Check one item."""
        if number >= len(self._items):
            return None
        return make_feeds(self._items[number], self._inputs, f"{self.name}, batch {number + 1}")

    def for_processes(self, count: int) -> DataSource:
        """Return the first batches as arrays: what the user's items are may not be picklable."""
        feeds = [self.batch(number) for number in range(min(count, len(self._items)))]
        return SequenceSource(feeds, self._inputs)


class StreamSource(DataSource):
    """Anything that can be iterated over, gone through once.

    What has been taken goes to a temporary file, where `spool` says so, and is read from there the next time: a
    generator has no second time, and a data loader that shuffles has another order then.
    """

    name = _NAME

    def __init__(
        self, items: Iterable[Any], inputs: Sequence[ModelInput], *, spool: bool, count: int | None = None
    ) -> None:
        """Take nothing yet.

        Args:
            items: the batches.
            inputs: the inputs of the model.
            spool: batches will be asked for more than once.
            count: how many there are; None: what the iterable says of itself.
        """
        self._items: Iterator[Any] = iter(items)
        self._count = length_of(items) if count is None else count
        self._inputs = tuple(inputs)
        self._spool: IO[bytes] | None = None
        self._spooling = spool
        self._starts: list[int] = []
        self._dtypes: dict[str, np.dtype[Any]] = {}
        self._taken = 0

    @property
    def count(self) -> int | None:
        """What is known of it, if anything."""
        return self._count

    @property
    def outline(self) -> str:
        """That it is an iterable: more is not known before it is gone through."""
        return "batches of an iterable"

    def batch(self, number: int) -> Feeds | None:
        """Take the iterable's next items, up to the wanted one; or read it from the temporary file.

        Raises:
            DataError: an item does not fit, or the batch is gone.
            OutputWriteError: the temporary file cannot be written. What the iterable raises passes as it is.
        """
        if number < self._taken:
            if not self._spooling:
                raise DataError(f"{self.name}: batch {number + 1} is gone, the data can be gone through only once")
            return self._read(number)
        while True:
            where = f"{self.name}, batch {self._taken + 1}"
            try:
                item = next(self._items)
            except StopIteration:
                return None
            feeds = make_feeds(item, self._inputs, where)
            self._write(feeds)
            self._taken += 1
            if number < self._taken:
                return feeds

    def for_processes(self, count: int) -> DataSource:
        """Return the first batches in a file that other processes read."""
        while self._taken < count and self.batch(self._taken) is not None:
            pass
        if self._spool is None:
            return SequenceSource((), self._inputs)
        return _SpooledBatches(Path(self._spool.name), tuple(self._starts), self._dtypes)

    def close(self) -> None:
        """Delete the temporary file."""
        if self._spool is not None:
            self._spool.close()
            self._spool = None

    def _write(self, feeds: Feeds) -> None:
        if not self._spooling:
            return
        self._dtypes = {name: array.dtype for name, array in feeds.items()}
        try:
            if self._spool is None:
                spool = tempfile.NamedTemporaryFile(prefix="twinquant-", suffix=".batches")  # noqa: SIM115  see close()
                self._spool = spool
            self._spool.seek(0, 2)
            self._starts.append(self._spool.tell())
            for array in feeds.values():
                np.lib.format.write_array(self._spool, np.ascontiguousarray(array).reshape(array.shape))
            self._spool.flush()
        except OSError as error:
            raise OutputWriteError(
                f"the batches cannot be kept in a temporary file: {error.strerror or error}; set TMPDIR to a folder "
                "with space for them, or give files or a list instead of an iterable"
            ) from error

    def _read(self, number: int) -> Feeds:
        assert self._spool is not None
        return _read_feeds(self._spool, self._starts[number], self._dtypes)


class _SpooledBatches(DataSource):
    """Batches in a file that another process keeps."""

    name = _NAME

    def __init__(self, path: Path, starts: tuple[int, ...], dtypes: Mapping[str, np.dtype[Any]]) -> None:
        self._path, self._starts, self._dtypes = path, starts, dtypes

    @property
    def count(self) -> int:
        return len(self._starts)

    @property
    def outline(self) -> str:
        return "batches in a temporary file"

    def batch(self, number: int) -> Feeds | None:
        if number >= len(self._starts):
            return None
        with self._path.open("rb") as file:
            return _read_feeds(file, self._starts[number], self._dtypes)


def _read_feeds(file: IO[bytes], start: int, dtypes: Mapping[str, np.dtype[Any]]) -> Feeds:
    file.seek(start)
    # bfloat16 and its likes come back without their type.
    return {name: np.lib.format.read_array(file, allow_pickle=False).view(dtype) for name, dtype in dtypes.items()}
