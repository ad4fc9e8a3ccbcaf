"""The fake-quant style with one Python layer for a quantization, whose module is written beside the twin."""

from __future__ import annotations

import json

from twinquant.numerics import reciprocal_scale
from twinquant.plan import ActivationQuant
from twinquant_caffe.insert.builtin import scale_layer
from twinquant_caffe.insert.made import made_layer
from twinquant_caffe.insert.recipes import Recipe
from twinquant_caffe.net import CaffeNet, Layer
from twinquant_caffe.prototxt.tree import Message, make

__all__ = ["LAYER_CLASS", "MODULE_NAME", "PYTHON", "is_python_quant", "needs_module"]

MODULE_NAME = "twinquant_fake_quant"
"""Name of the module beside the twin."""

LAYER_CLASS = "QuantLayer"
"""Name of the class in it."""


def _python_quant(name: str, bottom: str, consumer: str, quant: ActivationQuant) -> tuple[Layer, ...]:
    """Return the Python layer."""
    del consumer
    shortest = float(str(reciprocal_scale(quant.scale)))
    settings = json.dumps({"scale": shortest, "offset": quant.offset})
    parameter: Message = make(module=MODULE_NAME, layer=LAYER_CLASS, param_str=settings)
    return (made_layer(name, "Python", (bottom,), (name,), parameters={"python_param": parameter}),)


def is_python_quant(layer: Layer) -> bool:
    """Tell whether a layer is a quantization of this style."""
    return layer.type == "Python" and layer.message.message("python_param").text("module") == MODULE_NAME


def needs_module(net: CaffeNet) -> bool:
    """Tell whether a net has layers of this style."""
    return any(map(is_python_quant, net.layers))


PYTHON = Recipe(_python_quant, scale_layer)
