"""How many samples make a batch, and which files those are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twinquant.errors import DataError
from twinquant.registry.float_model import ModelInput

__all__ = ["FileGroups", "fixed_length", "rest_text"]


def fixed_length(wanted: ModelInput, batch_size: int | None, name: str) -> int | None:
    """Return the number of samples that the model takes at once; None where it leaves that open.

    Args:
        wanted: the input.
        batch_size: what the user asks for; None: nothing.
        name: how messages call the data.

    Raises:
        DataError: the two contradict each other.
    """
    fixed = wanted.shape[0] if wanted.shape else None
    if not isinstance(fixed, int):
        return None
    if batch_size not in (None, fixed):
        raise DataError(f"{name}: the model takes batches of {fixed}, batch_size is {batch_size}")
    return fixed


def rest_text(rest: int, total: int, length: int, noun: str) -> str:
    """Say that the last samples do not fill a batch; "" where there are none."""
    if not rest:
        return ""
    which = f"last {rest} of {total} {noun}s" if total > rest else f"{total} {noun}{'s' if total > 1 else ''}"
    return f"the {which} do not fill a batch of {length}, which the model fixes"


@dataclass(frozen=True, slots=True)
class FileGroups:
    """Files of one sample each, so many of which make a batch.

    Where the model leaves the length of a batch open, the last one may have fewer.

    Attributes:
        folder: the folder that they are in.
        files: in their order.
        size: samples in a batch.
        fixed: the model takes batches of this size only.
    """

    folder: Path
    files: tuple[Path, ...]
    size: int
    fixed: bool

    @classmethod
    def of(
        cls, folder: Path, files: Sequence[Path], wanted: ModelInput, batch_size: int | None, name: str
    ) -> FileGroups:
        """Group files into batches as long as the model fixes, else as given, else of one file.

        Raises:
            DataError: the model fixes another length than is given.
        """
        fixed = fixed_length(wanted, batch_size, name)
        return cls(folder, tuple(files), fixed or batch_size or 1, fixed is not None)

    @property
    def count(self) -> int:
        """How many batches there are."""
        return len(self.files) // self.size if self.fixed else -(-len(self.files) // self.size)

    def rest(self, noun: str) -> str:
        """Say which files are no part of any batch; see `DataSource.rest`."""
        return rest_text(len(self.files) % self.size if self.fixed else 0, len(self.files), self.size, noun)

    @property
    def sizes(self) -> str:
        """The names and sizes of the files."""
        return ", ".join(f"{self.label(path)} {path.stat().st_size}" for path in self.files)

    def batch(self, number: int) -> tuple[Path, ...]:
        """Return the files of one batch; none where the data ends before it."""
        return self.files[number * self.size : (number + 1) * self.size] if number < self.count else ()

    def label(self, path: Path) -> str:
        """Return how messages call a file."""
        return str(path.relative_to(self.folder))
