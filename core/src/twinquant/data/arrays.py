"""Whole arrays by input name, cut into batches along their first axis."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from twinquant.data.feeds import make_feeds, shape_text
from twinquant.data.rows import Rows
from twinquant.data.source import DataSource, Feeds
from twinquant.errors import DataError
from twinquant.registry.float_model import ModelInput

__all__ = ["ArraySource"]

_log = logging.getLogger(__name__)


class ArraySource(DataSource):
    """Arrays of samples, or of batches.

    An array with one axis more than the input is an array of batches. Otherwise its first axis counts samples; batches
    have the length that the model fixes, else `batch_size`, else the largest with which there are `batch_num` batches.
    Samples that do not fill a batch are left out.
    """

    def __init__(
        self,
        name: str,
        arrays: Mapping[str, Rows],
        inputs: Sequence[ModelInput],
        *,
        batch_size: int | None,
        batch_num: int,
        outline: str,
    ) -> None:
        """Find out how the arrays are cut.

        Args:
            name: how messages call the data.
            arrays: an array for every input.
            inputs: the inputs of the model.
            batch_size: samples in a batch; None: see above.
            batch_num: how many batches calibration wants.
            outline: see `DataSource.outline`.

        Raises:
            DataError: the arrays cannot be cut into the same number of batches.
        """
        self.name = name
        self._inputs = tuple(inputs)
        self._outline = outline
        self._arrays = {wanted.name: arrays[wanted.name] for wanted in inputs if wanted.name in arrays}
        if len(self._arrays) < len(inputs) or len(self._arrays) < len(arrays):
            make_feeds(dict(arrays), inputs, name)  # says which name is wrong
        self._lengths = {
            wanted.name: self._batch_length(wanted, batch_size) for wanted in inputs if self._arrays[wanted.name].shape
        }
        counts = {
            name: self._arrays[name].shape[0] // (length or 1)
            for name, length in self._lengths.items()
            if length is not None
        }
        if not counts and self._lengths:
            samples = min(self._arrays[name].shape[0] for name in self._lengths)
            self._lengths = dict.fromkeys(self._lengths, max(1, samples // batch_num))
            counts = {name: self._arrays[name].shape[0] // (n or 1) for name, n in self._lengths.items()}
        self._count = min(counts.values(), default=1)
        if len(set(counts.values())) > 1:
            raise DataError(
                f"{name}: the arrays have different numbers of batches: "
                + ", ".join(f"{key!r} {self._size(key)} has {n}" for key, n in counts.items())
            )
        self._cut_open_arrays()
        self._report_rest()

    def _batch_length(self, wanted: ModelInput, batch_size: int | None) -> int | None:
        """Return the length of a batch, 0 for an array of batches, None where it is still open."""
        rows = self._arrays[wanted.name]
        if wanted.shape is None:
            return batch_size
        if len(rows.shape) == len(wanted.shape) + 1:
            return 0
        fixed = wanted.shape[0] if wanted.shape else None
        if not isinstance(fixed, int):
            return batch_size
        if batch_size is not None and batch_size != fixed and wanted is self._inputs[0]:
            raise DataError(f"{self.name}: the model takes batches of {fixed}, batch_size is {batch_size}")
        if rows.shape[0] < fixed:
            raise DataError(
                f"{self.name}, input {wanted.name!r}: {rows.shape[0]} samples, but the model takes {fixed} at once"
            )
        return fixed

    def _cut_open_arrays(self) -> None:
        """Cut arrays whose batch length is open into as many batches as the others have."""
        for name, length in self._lengths.items():
            if length is None:
                rows = self._arrays[name].shape[0]
                if not self._count or rows % self._count:
                    raise DataError(
                        f"{self.name}: {rows} rows for input {name!r} cannot be cut into {self._count} equal batches, "
                        "the number that the other inputs have"
                    )
                self._lengths[name] = rows // self._count

    def _report_rest(self) -> None:
        for name, length in self._lengths.items():
            rest = self._arrays[name].shape[0] - self._count * (length or 1)
            if rest:
                _log.info("%s, input %r: the last %d samples do not fill a batch of %d", self.name, name, rest, length)

    def _size(self, name: str) -> str:
        return shape_text(self._arrays[name].shape)

    @property
    def count(self) -> int:
        """How many batches there are."""
        return self._count

    @property
    def outline(self) -> str:
        """The names and shapes, and what the files are."""
        cut = ", ".join(f"{name} {self._size(name)} by {self._lengths.get(name)}" for name in self._arrays)
        return f"{self._outline}: {cut}"

    def batch(self, number: int) -> Feeds | None:
        """Read the rows of one batch."""
        if number >= self._count:
            return None
        item = {}
        for name, rows in self._arrays.items():
            length = self._lengths.get(name)
            if length is None:
                item[name] = rows.read(0, 1).reshape(())
            elif length == 0:
                item[name] = rows.read(number, number + 1)[0]
            else:
                item[name] = rows.read(number * length, (number + 1) * length)
        return make_feeds(item, self._inputs, f"{self.name}, batch {number + 1}")

    def close(self) -> None:
        """Close the files."""
        for rows in self._arrays.values():
            rows.close()
