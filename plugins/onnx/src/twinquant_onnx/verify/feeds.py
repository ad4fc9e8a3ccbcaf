"""The input of a verification: checked if given, random if not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from twinquant.errors import VerificationError
from twinquant_onnx.constants import type_name

__all__ = ["check_feeds", "has_free_lengths", "random_feeds"]

Array = npt.NDArray[Any]

_SEED = 20240229

_GUESSES = (*((1, n) for n in (32, 64, 224, 1, 8, 320, 640, 4, 2)), *((n, n) for n in (2, 3, 4, 8, 16, 32)))
"""Lengths that are tried for axes whose length the model leaves open: for the first axis, and for the others."""


def check_feeds(model: onnx.ModelProto, data: Mapping[str, Any]) -> dict[str, Array]:
    """Check the user's arrays against the model's inputs.

    Raises:
        VerificationError: a name, a shape or an element type does not fit; says what was given and what is expected.
    """
    inputs = {value.name: value for value in model.graph.input}
    unknown = [name for name in data if name not in inputs]
    if unknown:
        raise VerificationError(f"the data hold {unknown[0]!r}, but the model's inputs are {sorted(inputs)}")
    absent = [name for name in inputs if name not in data]
    if absent:
        raise VerificationError(f"the data hold no array for input {absent[0]!r}; they hold {sorted(data)}")
    feeds: dict[str, Array] = {}
    for name, value in inputs.items():
        array = np.asarray(data[name])
        expected = _dtype(value)
        if array.dtype != expected:
            raise VerificationError(f"input {name!r}: the data are {array.dtype}, the model expects {expected}")
        declared = _lengths(value)
        if declared is not None and (
            len(declared) != array.ndim
            or any(isinstance(n, int) and n != given for n, given in zip(declared, array.shape, strict=True))
        ):
            shown = [n if n is not None else "?" for n in declared]
            raise VerificationError(
                f"input {name!r}: the data have shape {list(array.shape)}, the model expects {shown}"
            )
        feeds[name] = array
    return feeds


def has_free_lengths(model: onnx.ModelProto) -> bool:
    """Tell whether the model leaves the length of an axis of an input open."""
    return any(not isinstance(n, int) for value in model.graph.input for n in _lengths(value) or ())


def random_feeds(model: onnx.ModelProto, spread: Mapping[str, float]) -> Iterator[dict[str, Array]]:
    """Yield seeded random input, for one guess of the open lengths after the other.

    Args:
        model: gives the inputs.
        spread: standard deviation by input; 1 where nothing is known.

    Raises:
        VerificationError: an input's type or rank is unknown, so that nothing can be made up for it.
    """
    for first, length in _GUESSES if has_free_lengths(model) else _GUESSES[:1]:
        generator = np.random.default_rng(_SEED)
        chosen: dict[str, int] = {}
        feeds: dict[str, Array] = {}
        for value in model.graph.input:
            lengths = _lengths(value)
            if lengths is None:
                raise VerificationError(f"input {value.name!r} has no declared shape; give an array for it with --data")
            shape: list[int] = []
            for axis, declared in enumerate(lengths):
                guess = first if axis == 0 else length
                if isinstance(declared, str):
                    guess = chosen.setdefault(declared, guess)
                shape.append(declared if isinstance(declared, int) else guess)
            feeds[value.name] = _random(generator, shape, _dtype(value), spread.get(value.name, 1.0))
        yield feeds


def _random(generator: np.random.Generator, shape: list[int], dtype: np.dtype[Any], spread: float) -> Array:
    if dtype.kind == "f" or dtype.name == "bfloat16":
        return np.asarray(generator.standard_normal(shape) * spread).astype(dtype)
    if dtype.kind in "iub":
        return np.asarray(generator.integers(0, 2, shape)).astype(dtype)
    raise VerificationError(f"no random values can be made for an input of type {dtype}; give arrays with --data")


def _dtype(value: onnx.ValueInfoProto) -> np.dtype[Any]:
    if not value.type.HasField("tensor_type"):
        raise VerificationError(f"input {value.name!r} is no tensor; such models cannot be run here")
    kind = value.type.tensor_type.elem_type
    if kind in (onnx.TensorProto.STRING, onnx.TensorProto.UNDEFINED):
        raise VerificationError(f"input {value.name!r} is of type {type_name(kind)}; such models cannot be run here")
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind))


def _lengths(value: onnx.ValueInfoProto) -> list[int | str | None] | None:
    """Return an input's lengths: a number, the name of an open one, or None; None for an unknown rank."""
    if not value.type.HasField("tensor_type") or not value.type.tensor_type.HasField("shape"):
        return None
    lengths: list[int | str | None] = []
    for dim in value.type.tensor_type.shape.dim:
        # Some exporters write -1 for a length that is open.
        known = dim.HasField("dim_value") and dim.dim_value >= 0
        lengths.append(int(dim.dim_value) if known else (dim.dim_param or None))
    return lengths
