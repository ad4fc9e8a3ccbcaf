"""Batches as PyTorch users have them: what `forward` takes, and labels besides."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

from twinquant.data import length_of
from twinquant.errors import DataError
from twinquant_torch.inputs import InputLayout

__all__ = ["as_feeds"]

_logger = logging.getLogger(__name__)


def as_feeds(data: Any, layout: InputLayout) -> Any:
    """Return data whose batches of tensors become arrays by input name when they are asked for; other data as it is.

    Args:
        data: what the user gave as calibration data.
        layout: the inputs of the module.
    """
    if isinstance(data, (str, Mapping)) or hasattr(data, "__array__"):
        return data
    if isinstance(data, (list, tuple)):
        return _Sequence(data, layout)
    if isinstance(data, Iterable):
        return _Stream(data, layout) if length_of(data) is None else _Sized(data, layout)
    if isinstance(data, Sized) and hasattr(data, "__getitem__"):
        return _Dataset(data, layout)
    return data


class _Stream:
    """An iterable of batches."""

    def __init__(self, items: Any, layout: InputLayout) -> None:
        self._items, self._layout = items, layout
        self._told = False

    def __iter__(self) -> Iterator[Any]:
        for number, item in enumerate(self._items):
            yield self._feeds(item, number)

    def _feeds(self, item: Any, number: int) -> Any:
        argument = None if self._told else self._layout.ignored_argument(item)
        if argument is not None:
            self._told = True
            _logger.warning(
                "the batches hold more than the example inputs, which is taken for labels and left out; if it is the "
                "argument %r of forward, give example inputs that hold it, too",
                argument,
            )
        try:
            feeds = self._layout.feeds_of(item)
        except DataError as error:
            raise DataError(f"data, batch {number + 1}: {error}") from error
        return item if feeds is None else feeds


class _Sized(_Stream):
    """One that knows how many batches there are."""

    def __len__(self) -> int:
        return len(self._items)


class _Dataset(_Sized):
    """A map-style dataset, which need not raise IndexError at its end, nor give the same item twice."""

    def __iter__(self) -> Iterator[Any]:
        for number in range(len(self)):
            yield self._feeds(self._items[number], number)


class _Sequence(_Sized, Sequence[Any]):
    """Batches by number."""

    def __getitem__(self, number: Any) -> Any:
        return self._feeds(self._items[number], number)
