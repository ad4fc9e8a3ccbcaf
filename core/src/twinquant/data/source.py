"""What every data source is: batches by number."""

from __future__ import annotations

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Any

import numpy.typing as npt

__all__ = ["DataSource", "Feeds"]

Feeds = dict[str, npt.NDArray[Any]]
"""One batch: an array for every input of the model, by name."""


class DataSource(ABC):
    """Calibration data, cut into batches that fit the model. The same number gives the same batch every time.

    Attributes:
        name: how messages call the data.
    """

    name: str

    @property
    @abstractmethod
    def count(self) -> int | None:
        """How many batches there are; None: not known before they are read."""

    @abstractmethod
    def batch(self, number: int) -> Feeds | None:
        """Return one batch, or None if the data ends before it.

        Args:
            number: which batch, from 0 on.

        Raises:
            DataError: the batch cannot be read or does not fit the model.
        """

    @property
    @abstractmethod
    def outline(self) -> str:
        """What can be said about the data without reading it: equal for equal data."""

    @property
    def rest(self) -> str:
        """What is left over behind the last batch, as a clause; "" where nothing is."""
        return ""

    def for_processes(self, count: int) -> DataSource:
        """Return a source of the first batches that can be pickled, for other processes of this machine.

        Args:
            count: how many batches these processes may ask for.
        """
        del count
        return self

    def close(self) -> None:  # noqa: B027  most sources keep nothing open
        """Release files. The source must not be used afterwards."""

    def __enter__(self) -> DataSource:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
