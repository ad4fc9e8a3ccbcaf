"""The quantizations of a fake-quant net, recognized by what they compute."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from twinquant_caffe.insert.builtin import ROUNDING_MAGIC, builtin_parameters
from twinquant_caffe.insert.names import BUILTIN_SEPARATOR
from twinquant_caffe.insert.python_style import is_python_quant
from twinquant_caffe.net import BlobVersion, CaffeNet, Layer

__all__ = ["FakeQuant", "find_fake_quant"]

_CHAIN_LENGTH = 7


@dataclass(frozen=True, slots=True)
class FakeQuant:
    """A quantization.

    Attributes:
        layers: names of its layers.
        source: the tensor that it quantizes.
        result: the tensor that it makes.
        reciprocal: what it multiplies by.
        offset: its offset.
    """

    layers: tuple[str, ...]
    source: BlobVersion
    result: BlobVersion
    reciprocal: float
    offset: int


def find_fake_quant(net: CaffeNet, result: BlobVersion, writers: Mapping[BlobVersion, Layer]) -> FakeQuant | str:
    """Recognize the quantization that makes a tensor.

    Args:
        net: the fake-quant net.
        result: the tensor.
        writers: who writes which tensor.

    Returns:
        the quantization, or why there is none, as a sentence.
    """
    last = writers.get(result)
    if last is None:
        return f"no layer of the fake-quant net writes the blob {result.blob!r}"
    return _from_python(last) if is_python_quant(last) else _from_builtin(net, last, writers)


def _from_python(layer: Layer) -> FakeQuant | str:
    text = layer.message.message("python_param").text("param_str")
    try:
        settings: Any = json.loads(text)
        reciprocal, offset = float(np.float32(settings["scale"])), int(settings["offset"])
    except (ValueError, KeyError, TypeError) as error:
        return f"layer {layer.name!r}: its param_str {text!r} cannot be read: {error}"
    return FakeQuant((layer.name,), layer.reads[0], layer.writes[0], reciprocal, offset)


def _from_builtin(net: CaffeNet, last: Layer, writers: Mapping[BlobVersion, Layer]) -> FakeQuant | str:
    chain = [last]
    while len(chain) < _CHAIN_LENGTH and len(chain[0].reads) == 1 and chain[0].reads[0] in writers:
        chain.insert(0, writers[chain[0].reads[0]])
    if [layer.type for layer in chain] != ["Power", "ReLU"] * 3 + ["Power"]:
        return f"the blob {last.tops[0]!r} of the fake-quant net is not made by the seven layers of a quantization"
    first = chain[0].message.message("power_param")
    shift = chain[2].message.message("power_param").number("shift", 0.0)
    reciprocal = float(np.float32(first.number("scale", 1.0)))
    offset = ROUNDING_MAGIC + 127 - int(shift)
    for layer, wanted in zip(chain, builtin_parameters(reciprocal, offset), strict=True):
        problem = _power_problem(layer, wanted) if wanted is not None else _relu_problem(layer)
        if problem:
            return f"layer {layer.name!r} of the fake-quant net: {problem}"
    separator = writers.get(chain[0].reads[0])
    if separator is not None and separator.name == f"{chain[0].name.rpartition('/')[0]}/{BUILTIN_SEPARATOR}":
        if problem := _relu_problem(separator, slope=1.0):
            return f"layer {separator.name!r} of the fake-quant net: {problem}"
        chain.insert(0, separator)
    for layer in chain[:-1]:
        if len(net.readers(layer.writes[0])) != 1:
            return f"the blob {layer.tops[0]!r} of the fake-quant net, inside of a quantization, is read elsewhere too"
    return FakeQuant(tuple(layer.name for layer in chain), chain[0].reads[0], last.writes[0], reciprocal, offset)


def _power_problem(layer: Layer, wanted: Mapping[str, float]) -> str | None:
    param = layer.message.message("power_param")
    for name, default in (("power", 1.0), ("scale", 1.0), ("shift", 0.0)):
        given, expected = np.float32(param.number(name, default)), np.float32(wanted.get(name, default))
        if given != expected:
            return f"{name} is {float(given)!r}, expected {float(expected)!r}"
    return None


def _relu_problem(layer: Layer, *, slope: float = 0.0) -> str | None:
    if layer.type != "ReLU" or len(layer.reads) != 1:
        return f"it is a {layer.type}, expected a ReLU"
    given = layer.message.message("relu_param").number("negative_slope", 0.0)
    return None if given == slope else f"negative_slope is {given!r}, expected {slope:g}"
