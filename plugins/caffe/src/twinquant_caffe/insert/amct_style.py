"""The experimental fake-quant style: the vendor's own layers, which only its patched Caffe runs."""

from __future__ import annotations

from twinquant.numerics import reciprocal_scale
from twinquant.plan import ActivationQuant
from twinquant_caffe.insert.deploy import dequant_layer, offset_byte
from twinquant_caffe.insert.made import made_layer
from twinquant_caffe.insert.recipes import Recipe
from twinquant_caffe.net import Layer
from twinquant_caffe.prototxt.tree import Message, make

__all__ = ["AMCT"]


def _amct_quant(name: str, bottom: str, consumer: str, quant: ActivationQuant) -> tuple[Layer, ...]:
    """Return the vendor's Quant layer, in the form that its patched Caffe reads."""
    parameter: Message = make(
        with_offset=True,
        scale=float(reciprocal_scale(quant.scale)),
        offset=offset_byte(quant.offset),
        object_layer=consumer,
    )
    return (made_layer(name, "Quant", (bottom,), (name,), parameters={"quant_param": parameter}),)


AMCT = Recipe(_amct_quant, dequant_layer)
