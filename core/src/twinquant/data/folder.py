"""A folder of .npy or .npz files, one batch or one sample each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twinquant.data.feeds import make_feeds
from twinquant.data.grouping import FileGroups
from twinquant.data.rows import READ_ERRORS, FileRows, unreadable
from twinquant.data.source import DataSource, Feeds
from twinquant.errors import DataError
from twinquant.registry.float_model import ModelInput

__all__ = ["ArrayFolder"]


class ArrayFolder(DataSource):
    """Files of arrays in the order of their names.

    A file is a batch. For a model with one input, .npy files whose array lacks the first axis are samples, of which
    `batch_size` make a batch: the number that the model fixes, else the given one, else 1. Where the model leaves the
    number open, the last batch may have fewer.
    """

    def __init__(
        self, folder: Path, files: Sequence[Path], inputs: Sequence[ModelInput], *, batch_size: int | None
    ) -> None:
        """List the batches; of the files only the first one's header is read."""
        self.name = f"data {str(folder)!r}"
        self._inputs = tuple(inputs)
        if self._holds_samples(files[0]):
            self._groups = FileGroups.of(folder, files, inputs[0], batch_size, self.name)
        else:
            self._groups = FileGroups(folder, tuple(files), 1, fixed=True)

    def _holds_samples(self, file: Path) -> bool:
        """Tell whether a file holds an array without the batch axis, for a model with one input."""
        wanted = self._inputs[0].shape
        if len(self._inputs) > 1 or not wanted or file.suffix.lower() != ".npy":
            return False
        return len(FileRows(file).shape) + 1 == len(wanted)

    @property
    def count(self) -> int:
        """How many batches there are."""
        return self._groups.count

    @property
    def rest(self) -> str:
        """Which files do not fill a batch that the model fixes."""
        return self._groups.rest("file")

    @property
    def outline(self) -> str:
        """The names and sizes of the files."""
        return f"files by {self._groups.size}: {self._groups.sizes}"

    def batch(self, number: int) -> Feeds | None:
        """Read the files of one batch."""
        files = self._groups.batch(number)
        if not files:
            return None
        where = f"{self.name}, {self._groups.label(files[0])}"
        items = [_load(path) for path in files]
        try:
            item = np.stack(items) if self._groups.size > 1 else items[0]
        except ValueError as error:
            raise DataError(f"{where}: its array and those of the {len(files) - 1} files after it: {error}") from error
        return make_feeds(item, self._inputs, where)


def _load(path: Path) -> Any:
    try:
        with path.open("rb") as file:  # numpy leaves a file open that it opened and cannot read
            content = np.load(file, allow_pickle=False)
            if isinstance(content, np.ndarray):
                return content
            return {name: content[name] for name in content.files}
    except READ_ERRORS as error:
        raise unreadable(path, error) from error
