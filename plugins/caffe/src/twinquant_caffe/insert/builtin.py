"""The fake-quant style that runs everywhere: a quantization in seven layers of stock Caffe."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from twinquant.numerics import integer_range, reciprocal_scale
from twinquant.plan import ActivationQuant
from twinquant_caffe.insert.made import float_blob, made_layer
from twinquant_caffe.insert.names import BUILTIN_SEPARATOR, BUILTIN_STEPS
from twinquant_caffe.insert.recipes import Recipe
from twinquant_caffe.net import Layer
from twinquant_caffe.prototxt.tree import Message, make

__all__ = ["BUILTIN", "ROUNDING_MAGIC", "builtin_parameters", "builtin_quant", "builtin_separator", "scale_layer"]

ROUNDING_MAGIC = 12582912
"""1.5 * 2^23: adding it to a float32 of moderate size rounds that to a whole number, ties to even."""


def builtin_parameters(reciprocal: float, offset: int) -> tuple[dict[str, float] | None, ...]:
    """Return the power_param of each of the seven layers, None for a ReLU.

    With M = `ROUNDING_MAGIC` and r = rint(x * reciprocal), the layers compute M + r, then 127 - offset - r, nowhere
    below 0; then 255 less that, nowhere below 0; then `clip(r + offset, -128, 127) - offset`. No two Powers are
    neighbours: runtimes merge those, and the rounding is lost.

    Args:
        reciprocal: float32 value of 1/scale.
        offset: zero point in the signed domain.
    """
    low, high = integer_range(8)
    return (
        {"scale": reciprocal, "shift": ROUNDING_MAGIC},
        None,
        {"scale": -1.0, "shift": ROUNDING_MAGIC + high - offset},
        None,
        {"scale": -1.0, "shift": high - low},
        None,
        {"shift": low - offset},
    )


def builtin_quant(name: str, bottom: str, consumer: str, quant: ActivationQuant) -> tuple[Layer, ...]:
    """Return the seven layers."""
    del consumer
    layers: list[Layer] = []
    parameters = builtin_parameters(float(reciprocal_scale(quant.scale)), quant.offset)
    for step, parameter in zip(BUILTIN_STEPS, parameters, strict=True):
        step_name = f"{name}/{step}"
        top = name if step == BUILTIN_STEPS[-1] else step_name
        kind, fields = ("ReLU", {}) if parameter is None else ("Power", {"power_param": make(**parameter)})
        layers.append(made_layer(step_name, kind, (bottom,), (top,), parameters=fields))
        bottom = top
    return tuple(layers)


def builtin_separator(name: str, bottom: str) -> Layer:
    """Return a layer that changes nothing, between a quantization and a layer that a Power is merged with.

    A ReLU of slope 1, as every runtime has it and none takes it for what it is; converters drop a Split.
    """
    own = f"{name}/{BUILTIN_SEPARATOR}"
    return made_layer(own, "ReLU", (bottom,), (own,), parameters={"relu_param": make(negative_slope=1.0)})


def scale_layer(name: str, bottom: str, top: str, scale: npt.NDArray[np.float32], channels: int) -> Layer:
    """Return the Scale layer that multiplies every channel by its dequantization scale."""
    parameter: Message = make(axis=1, bias_term=False)
    values = np.ascontiguousarray(np.broadcast_to(scale, (channels,)))
    return made_layer(
        name, "Scale", (bottom,), (top,), parameters={"scale_param": parameter}, blobs=(float_blob(values),)
    )


BUILTIN = Recipe(builtin_quant, scale_layer, builtin_separator)
