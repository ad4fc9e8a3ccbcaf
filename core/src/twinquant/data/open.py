"""Finding out what the user's data is."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twinquant.data.arrays import ArraySource
from twinquant.data.feeds import is_array, to_array
from twinquant.data.folder import ArrayFolder
from twinquant.data.images import IMAGE_SUFFIXES, ImageFolder
from twinquant.data.iterables import SequenceSource, StreamSource, length_of
from twinquant.data.options import DataOptions
from twinquant.data.rows import FileRows, MemoryRows, npz_members
from twinquant.data.source import DataSource
from twinquant.errors import ArgumentError, DataError
from twinquant.registry.float_model import ModelInput

__all__ = ["open_data"]

_ARRAY_SUFFIXES = (".npy", ".npz")


def open_data(
    data: Any, inputs: Sequence[ModelInput], options: DataOptions, *, batch_num: int, repeated: bool
) -> DataSource:
    """Make a data source of whatever the user gave. Close it afterwards.

    Args:
        data: a folder of images or of .npy or .npz files; an .npz or .npy file; an array, or arrays by input name; a
            list of batches; or any iterable of batches, such as a data loader, or a dataset that gives them by number.
            `make_feeds` says what a batch may be.
        inputs: the inputs of the model.
        options: how data is cut and prepared.
        batch_num: how many batches will be asked for.
        repeated: batches will be asked for more than once, or by other processes.

    Raises:
        ArgumentError: the data is nothing of this, or is not what an option is for.
        DataError: the data is missing, empty or broken, or does not fit the model.
    """
    if not inputs:
        raise DataError("the model has no input that data could be given for")
    source = _open(data, inputs, options, batch_num, repeated)
    if not isinstance(source, ImageFolder):
        for name in options.for_images():
            source.close()
            raise ArgumentError(
                f"{name}: is for folders of images, and {source.name} holds arrays, which are taken as they are; "
                f"prepare them as the model takes them, and leave {name} out"
            )
    return source


def _open(data: Any, inputs: Sequence[ModelInput], options: DataOptions, batch_num: int, repeated: bool) -> DataSource:
    if isinstance(data, (str, os.PathLike)):
        if not os.fspath(data):
            raise DataError("data: the path is empty; give a folder or a file")
        return _open_path(Path(data), inputs, options, batch_num)
    if isinstance(data, Mapping):
        arrays = {str(name): value for name, value in data.items()}
        return _open_arrays(arrays, inputs, options, batch_num)
    if is_array(data):
        return _open_arrays({inputs[0].name: data}, inputs, options, batch_num)
    if isinstance(data, Sequence):
        if not data:
            raise DataError("data: the list is empty; calibration needs at least one batch")
        return SequenceSource(data, inputs)
    if isinstance(data, Iterable):
        return StreamSource(data, inputs, spool=repeated)
    count = length_of(data)
    if count is not None and hasattr(data, "__getitem__"):
        # A map-style dataset need not raise IndexError at its end, nor give the same item twice.
        return StreamSource(map(data.__getitem__, range(count)), inputs, spool=repeated, count=count)
    raise ArgumentError(
        "data: must be a folder, an .npz or .npy file, arrays by input name, or an iterable or dataset of batches, "
        f"got {type(data).__name__}"
    )


def _open_arrays(
    arrays: Mapping[str, Any], inputs: Sequence[ModelInput], options: DataOptions, batch_num: int
) -> DataSource:
    dtypes = {wanted.name: wanted.dtype for wanted in inputs}
    rows = {
        name: MemoryRows(to_array(value, dtypes.get(name, "float32"), f"data, input {name!r}"))
        for name, value in arrays.items()
    }
    return ArraySource("data", rows, inputs, batch_size=options.batch_size, batch_num=batch_num, outline="arrays")


def _open_path(path: Path, inputs: Sequence[ModelInput], options: DataOptions, batch_num: int) -> DataSource:
    if path.is_dir():
        return _open_folder(path, inputs, options, batch_num)
    if not path.exists():
        raise DataError(f"data: there is no file or folder {str(path)!r}")
    if path.suffix.lower() not in _ARRAY_SUFFIXES:
        raise DataError(f"data: {str(path)!r} is neither a folder nor an .npz or .npy file")
    if path.suffix.lower() == ".npy" and len(inputs) > 1:
        listed = ", ".join(repr(wanted.name) for wanted in inputs)
        raise DataError(f"data: {str(path)!r} holds one array, the model has the inputs {listed}; make an .npz file")
    rows = (
        {inputs[0].name: FileRows(path)}
        if path.suffix.lower() == ".npy"
        else {name: FileRows(path, name) for name in npz_members(path)}
    )
    outline = f"{path.name}, {path.stat().st_size} bytes"
    return ArraySource(
        f"data {str(path)!r}", rows, inputs, batch_size=options.batch_size, batch_num=batch_num, outline=outline
    )


def _open_folder(folder: Path, inputs: Sequence[ModelInput], options: DataOptions, batch_num: int) -> DataSource:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))
    images = [path for path in files if path.suffix.lower() in IMAGE_SUFFIXES]
    arrays = [path for path in files if path.suffix.lower() in _ARRAY_SUFFIXES]
    if images and arrays:
        raise DataError(
            f"data {str(folder)!r}: holds images ({images[0].name}) and arrays ({arrays[0].name}); "
            "put one kind into a folder of its own"
        )
    if not images and not arrays:
        kinds = ", ".join((*sorted(IMAGE_SUFFIXES), *_ARRAY_SUFFIXES))
        raise DataError(f"data {str(folder)!r}: holds no calibration data; files of these types are read: {kinds}")
    if arrays:
        return ArrayFolder(folder, arrays, inputs, batch_size=options.batch_size)
    return ImageFolder(
        folder,
        images,
        inputs,
        options,
        batch_num=batch_num,
    )
