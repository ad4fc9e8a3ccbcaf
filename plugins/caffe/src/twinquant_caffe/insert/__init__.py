"""Lowering a plan to Caffe layers: the same edits for both twins, with a recipe for what differs."""

from __future__ import annotations

from twinquant.outputs import Flavor
from twinquant.plan import QuantPlan
from twinquant_caffe.insert.deploy import DEPLOY
from twinquant_caffe.insert.heads import for_the_device
from twinquant_caffe.insert.merging import merges_with_power
from twinquant_caffe.insert.names import name_insertions
from twinquant_caffe.insert.quantized import output_channels, quantized_layer
from twinquant_caffe.insert.recipes import Recipe
from twinquant_caffe.insert.styles import STYLES
from twinquant_caffe.net import CaffeNet, Layer

__all__ = ["STYLES", "build_twin"]


def build_twin(net: CaffeNet, plan: QuantPlan, flavor: Flavor, style: str = "builtin") -> CaffeNet:
    """Return one twin of a net. Weights are quantized when they are written.

    Args:
        net: the float net that the plan is for.
        plan: what is inserted where.
        flavor: which twin.
        style: how the fake-quant twin quantizes: one of `STYLES`.

    Raises:
        ModelContentError: a bias cannot be quantized.
        UnsupportedModelError: the channels of a Pooling, which the fake-quant twin needs, are not known.
    """
    if flavor is Flavor.FAKE_QUANT:
        return _lowered(net, plan, STYLES[style])
    return for_the_device(_lowered(net, plan, DEPLOY))


def _lowered(net: CaffeNet, plan: QuantPlan, recipe: Recipe) -> CaffeNet:
    """Replace every planned layer by its quantization, itself on integers and its dequantization."""
    planned = {layer.name: layer for layer in plan}
    names = name_insertions(net, plan)
    layers: list[Layer] = []
    for layer in net.layers:
        step = planned.get(layer.name)
        if step is None:
            layers.append(layer)
            continue
        called = names[layer.name]
        if step.activation.owner == layer.name:
            source = layer.bottoms[0]
            if recipe.separator is not None and merges_with_power(layers, source):
                layers.append(recipe.separator(called.quant, source))
                (source,) = layers[-1].tops
            layers += recipe.quant(called.quant, source, layer.name, step.activation)
        layers.append(quantized_layer(layer, step, called, integers=recipe.integers))
        channels = 1 if recipe.integers else output_channels(layer, step, net)
        layers.append(recipe.dequant(called.dequant, called.accumulator, layer.tops[0], step.output.scale, channels))
    return net.with_layers(layers)
