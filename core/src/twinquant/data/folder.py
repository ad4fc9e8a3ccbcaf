"""A folder of .npy or .npz files, one batch or one sample each."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twinquant.data.feeds import make_feeds
from twinquant.data.rows import READ_ERRORS, FileRows, unreadable
from twinquant.data.source import DataSource, Feeds
from twinquant.errors import DataError
from twinquant.registry.float_model import ModelInput

__all__ = ["ArrayFolder"]


class ArrayFolder(DataSource):
    """Files of arrays in the order of their names.

    A file is a batch. For a model with one input, .npy files whose array lacks the first axis are samples, of which
    `batch_size` make a batch: the number that the model fixes, else the given one, else 1.
    """

    def __init__(
        self, folder: Path, files: Sequence[Path], inputs: Sequence[ModelInput], *, batch_size: int | None
    ) -> None:
        """List the batches; of the files only the first one's header is read."""
        self.name = f"data {str(folder)!r}"
        self._folder, self._files, self._inputs = folder, tuple(files), tuple(inputs)
        self._group = 1
        wanted = inputs[0]
        if len(inputs) == 1 and wanted.shape and files[0].suffix == ".npy":
            first = FileRows(files[0])
            if len(first.shape) + 1 == len(wanted.shape):
                fixed = wanted.shape[0]
                if isinstance(fixed, int) and batch_size not in (None, fixed):
                    raise DataError(f"{self.name}: the model takes batches of {fixed}, batch_size is {batch_size}")
                self._group = fixed if isinstance(fixed, int) else batch_size or 1

    @property
    def count(self) -> int:
        """How many batches there are."""
        return len(self._files) // self._group

    @property
    def outline(self) -> str:
        """The names and sizes of the files."""
        sizes = ", ".join(f"{path.relative_to(self._folder)} {path.stat().st_size}" for path in self._files)
        return f"files by {self._group}: {sizes}"

    def batch(self, number: int) -> Feeds | None:
        """Read the files of one batch."""
        if number >= self.count:
            return None
        files = self._files[number * self._group : (number + 1) * self._group]
        where = f"{self.name}, {files[0].relative_to(self._folder)}"
        items = [_load(path) for path in files]
        try:
            item = np.stack(items) if self._group > 1 else items[0]
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
