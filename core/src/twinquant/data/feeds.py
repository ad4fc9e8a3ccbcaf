"""From what users hand over as a batch to arrays by input name that fit the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.data.source import Feeds
from twinquant.errors import DataError
from twinquant.registry.float_model import ModelInput

__all__ = ["is_array", "make_feeds", "shape_text", "to_array"]

Array = npt.NDArray[Any]

_CONVERSIONS = {
    "O": "give arrays of numbers, with one shape for all samples of a batch",
    "c": "give real numbers, such as their .real or their magnitude",
    "M": "give numbers",
    "m": "give numbers",
    "S": "give numbers",
    "U": "give numbers",
    "V": "give an array for each input",
}
"""What can be done about elements that do not become numbers by themselves, by NumPy's letter for their kind."""


def make_feeds(item: Any, inputs: Sequence[ModelInput], where: str) -> Feeds:
    """Turn one item of the user's data into one batch.

    Args:
        item: arrays by input name; one array, for a model with one input; or a tuple or list of arrays in the order of
            the inputs, of which those beyond the last input (labels) are left out. Tensors of any library count as
            arrays if they can become one. An array may lack the first axis, which is added.
        inputs: the inputs of the model.
        where: how messages call the item.

    Raises:
        DataError: a name, a shape or an element type does not fit, or there is no sample; says what was given and what
            the model takes.
    """
    feeds = {}
    for value, wanted in zip(_by_input(item, inputs, where), inputs, strict=True):
        feeds[wanted.name] = _fitting(to_array(value, wanted.dtype, f"{where}, input {wanted.name!r}"), wanted, where)
    # Other axes may be empty where other inputs have values: the cache of a language model before its first word.
    nothing = not any(array.size for array in feeds.values())
    for name, array in feeds.items():
        if not array.size and (nothing or not array.shape[0]):
            raise DataError(f"{where}, input {name!r}: the data have shape {shape_text(array.shape)}: no value at all")
    return feeds


def is_array(value: Any) -> bool:
    """Tell whether a value is an array or a tensor of some library, without importing any."""
    return isinstance(value, np.ndarray) or hasattr(value, "__array__") or hasattr(value, "detach")


def to_array(value: Any, dtype: str, where: str) -> Array:
    """Return a value as an array; plain numbers become the wanted element type, arrays keep theirs.

    Raises:
        DataError: it cannot become one.
    """
    try:
        if hasattr(value, "detach"):  # a torch tensor, maybe on another device, maybe with a gradient
            value = value.detach().cpu().numpy()
        if is_array(value):
            array = np.asarray(value)
            # Frameworks take the bytes as they are.
            return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))
        array = np.asarray(value)
        if array.dtype.kind in "SU":
            raise ValueError(f"{value!r:.80} is text; give arrays, or the path of a folder or file as the data itself")
        return array.astype(dtype) if array.dtype.kind in "biuf" else array
    except (TypeError, ValueError, RuntimeError) as error:
        # NumPy has no bfloat16, and torch says no more than that.
        hint = "; convert it with .float()" if "ScalarType" in str(error) else ""
        raise DataError(f"{where}: cannot become an array: {error}{hint}") from error


def shape_text(shape: Sequence[int | str | None]) -> str:
    """Write a shape, with "?" for a length that is open and has no name."""
    return f"[{', '.join('?' if length is None else str(length) for length in shape)}]"


def _by_input(item: Any, inputs: Sequence[ModelInput], where: str) -> list[Any]:
    """Return the item's parts in the order of the inputs."""
    names = [wanted.name for wanted in inputs]
    if isinstance(item, Mapping):
        for name in item:
            if name not in names:
                close = get_close_matches(str(name).lower(), [known.lower() for known in names], n=1)
                likely = next((known for known in names if [known.lower()] == close), None)
                hint = f"did you mean {likely!r}? It has" if likely else "it has"
                raise DataError(f"{where}: the model has no input {name!r}; {hint} {_listed(names)}")
        for name in names:
            if name not in item:
                raise DataError(f"{where}: no array for the input {name!r}; there are {_listed(list(item))}")
        return [item[name] for name in names]
    if isinstance(item, (tuple, list)) and (not item or is_array(item[0]) or len(inputs) > 1):
        if len(item) < len(inputs):
            raise DataError(
                f"{where}: {len(item)} arrays, but the model has {len(inputs)} inputs, {_listed(names)}; "
                "give a dict of arrays by input name"
            )
        return list(item[: len(inputs)])
    if len(inputs) != 1:
        raise DataError(
            f"{where}: one {type(item).__name__}, but the model has {len(inputs)} inputs, {_listed(names)}; "
            "give a dict of arrays by input name"
        )
    return [item]


def _fitting(array: Array, wanted: ModelInput, where: str) -> Array:
    where = f"{where}, input {wanted.name!r}"
    if array.dtype.name != wanted.dtype:
        raise DataError(
            f"{where}: the data are {_kind_text(array)}, the model takes {wanted.dtype}; "
            + _CONVERSIONS.get(array.dtype.kind, f"convert them with .astype({wanted.dtype!r})")
        )
    if wanted.shape is None:
        return array
    given = array.shape
    if array.ndim + 1 == len(wanted.shape) and (wanted.shape[0] == 1 or not isinstance(wanted.shape[0], int)):
        array = array[np.newaxis]
    fits = array.ndim == len(wanted.shape) and all(
        not isinstance(length, int) or length == actual
        for length, actual in zip(wanted.shape, array.shape, strict=True)
    )
    if not fits:
        raise DataError(f"{where}: the data have shape {shape_text(given)}, the model takes {shape_text(wanted.shape)}")
    return array


def _kind_text(array: Array) -> str:
    if array.dtype.kind != "O":
        return str(array.dtype.name)
    first = next(iter(array.flat), None)
    return f"Python objects (such as {type(first).__name__})"


def _listed(names: Sequence[Any]) -> str:
    return ", ".join(map(repr, names)) or "none"
