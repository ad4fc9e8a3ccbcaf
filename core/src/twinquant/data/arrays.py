"""Whole arrays by input name, cut into batches along their first axis."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from twinquant.data.feeds import make_feeds, shape_text
from twinquant.data.grouping import fixed_length, rest_text
from twinquant.data.rows import Rows
from twinquant.data.source import DataSource, Feeds
from twinquant.errors import DataError
from twinquant.registry.float_model import ModelInput

__all__ = ["ArraySource"]


@dataclass(frozen=True, slots=True)
class _Cut:
    """How one array is cut.

    Attributes:
        rows: the length of its first axis.
        length: rows in a batch; None: the rows are divided evenly among the batches.
        fixed: the model fixes the length: no batch is shorter.
        batches: every row is a batch, which has its first axis behind that of the rows.
    """

    rows: int
    length: int | None
    fixed: bool
    batches: bool = False

    @property
    def count(self) -> int | None:
        """How many batches there are; None: as many as are wanted."""
        if self.length is None:
            return None
        return self.rows // self.length if self.fixed else -(-self.rows // self.length)

    @property
    def rest(self) -> str:
        """Which rows are no part of any batch."""
        rest = self.rows % self.length if self.fixed and self.length else 0
        return rest_text(rest, self.rows, self.length or 1, "sample")

    def span(self, number: int, count: int) -> tuple[int, int]:
        """Return the first row of a batch, and the one behind its last."""
        if self.length is None:
            return self.rows * number // count, self.rows * (number + 1) // count
        return number * self.length, min((number + 1) * self.length, self.rows)


class ArraySource(DataSource):
    """Arrays of samples, or of batches.

    An array with one axis more than the input is an array of batches. Otherwise its first axis counts samples. Batches
    have the length that the model fixes, and samples that do not fill one are left out; else `batch_size`, and the last
    one may be shorter; else all samples are divided evenly among `batch_num` batches.
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
        self._cuts = {
            wanted.name: self._cut(wanted, batch_size) for wanted in inputs if self._arrays[wanted.name].shape
        }
        self._count = self._common_count(batch_num)

    def _cut(self, wanted: ModelInput, batch_size: int | None) -> _Cut:
        rows = self._arrays[wanted.name].shape
        if wanted.shape is not None and len(rows) == len(wanted.shape) + 1:
            return _Cut(rows[0], 1, fixed=True, batches=True)
        fixed = fixed_length(wanted, batch_size if wanted is self._inputs[0] else None, self.name)
        if fixed is not None and rows[0] < fixed:
            raise DataError(
                f"{self.name}, input {wanted.name!r}: {rows[0]} samples, but the model takes {fixed} at once"
            )
        return _Cut(rows[0], fixed or batch_size, fixed=fixed is not None)

    def _common_count(self, batch_num: int) -> int:
        """Return the number of batches, having cut arrays whose batch length is open into as many as the others."""
        counts = {name: cut.count for name, cut in self._cuts.items() if cut.count is not None}
        if len(set(counts.values())) > 1:
            raise DataError(
                f"{self.name}: the arrays have different numbers of batches: "
                + ", ".join(f"{key!r} {self._size(key)} has {n}" for key, n in counts.items())
            )
        if not counts:
            self._check_samples(self._cuts)
            return min([batch_num, *(cut.rows for cut in self._cuts.values())]) if self._cuts else 1
        count = min(counts.values())
        by_rows = {}
        for length in {self._cuts[name].length for name in counts}:
            alike = [name for name in counts if self._cuts[name].length == length and not self._cuts[name].batches]
            self._check_samples(alike)
            by_rows.update({self._cuts[name].rows: self._cuts[name] for name in alike})
        for name in self._cuts.keys() - counts.keys():
            rows = self._cuts[name].rows
            if rows in by_rows:  # the same samples as an array whose batches have a length
                self._cuts[name] = by_rows[rows]
            elif not count or rows % count:
                raise DataError(
                    f"{self.name}: {rows} rows for input {name!r} cannot be cut into {count} equal batches, "
                    "the number that the other inputs have"
                )
        return count

    def _check_samples(self, names: Collection[str]) -> None:
        """Refuse arrays that are cut alike and do not hold the same number of samples."""
        if len({self._cuts[name].rows for name in names}) > 1:
            raise DataError(f"{self.name}: the arrays have different numbers of samples: {self._shapes(names)}")

    def _shapes(self, names: Iterable[str]) -> str:
        return ", ".join(f"{name!r} {self._size(name)}" for name in names)

    def _size(self, name: str) -> str:
        return shape_text(self._arrays[name].shape)

    @property
    def count(self) -> int:
        """How many batches there are."""
        return self._count

    @property
    def outline(self) -> str:
        """The names and shapes, and what the files are."""
        return f"{self._outline}: {self._shapes(self._arrays)} in {self._count} batches"

    @property
    def rest(self) -> str:
        """Which samples do not fill a batch that the model fixes."""
        return next((cut.rest for cut in self._cuts.values() if cut.rest), "")

    def batch(self, number: int) -> Feeds | None:
        """Read the rows of one batch."""
        if number >= self._count:
            return None
        item = {}
        for name, rows in self._arrays.items():
            if name not in self._cuts:
                item[name] = rows.read(0, 1).reshape(())
                continue
            cut = self._cuts[name]
            part = rows.read(*cut.span(number, self._count))
            item[name] = part[0] if cut.batches else part
        return make_feeds(item, self._inputs, f"{self.name}, batch {number + 1}")

    def close(self) -> None:
        """Close the files."""
        for rows in self._arrays.values():
            rows.close()
