"""Names of what is inserted: the same in both twins, and never one that the net has already."""

from __future__ import annotations

from dataclasses import dataclass

from twinquant.plan import QuantPlan
from twinquant_caffe.net import CaffeNet

__all__ = ["BUILTIN_SEPARATOR", "BUILTIN_STEPS", "InsertedNames", "name_insertions"]

BUILTIN_STEPS = ("round", "guard", "from_top", "clip_top", "from_bottom", "clip_bottom", "take_offset")
"""What follows the quantization's name and a slash in the names of the seven layers that imitate it."""

BUILTIN_SEPARATOR = "keep_apart"
"""The same of the layer that may stand before the seven."""


@dataclass(frozen=True, slots=True)
class InsertedNames:
    """What is called how around one quantized layer.

    Attributes:
        quant: the quantization, and the blob that it writes; for a layer that shares one, the shared one.
        dequant: the dequantization.
        accumulator: the blob between the layer and its dequantization.
    """

    quant: str
    dequant: str
    accumulator: str


def name_insertions(net: CaffeNet, plan: QuantPlan) -> dict[str, InsertedNames]:
    """Return the names around every layer of a plan, by the layer's name.

    A name that a layer or a blob of the net has already gets a number at its end.
    """
    taken = {name for layer in net.layers for name in (layer.name, *layer.bottoms, *layer.tops)}
    taken.update(blob for blob, _ in net.inputs)
    tops = {layer.name: layer.tops for layer in net.layers}
    quants: dict[str, str] = {}
    names: dict[str, InsertedNames] = {}
    for layer in plan:
        if layer.activation.owner == layer.name:
            quants[layer.name] = _free(f"{layer.name}_0_quant_layer", taken, (*BUILTIN_STEPS, BUILTIN_SEPARATOR))
        names[layer.name] = InsertedNames(
            quants[layer.activation.owner],
            _free(f"{layer.name}_dequant_layer", taken),
            _free(f"{tops[layer.name][0]}/int32", taken),
        )
    return names


def _free(wanted: str, taken: set[str], steps: tuple[str, ...] = ()) -> str:
    """Return a name that is not taken, neither alone nor with a step behind it; it is taken from then on."""
    name, number = wanted, 0
    while not taken.isdisjoint((name, *(f"{name}/{step}" for step in steps))):
        number += 1
        name = f"{wanted}_{number}"
    taken.add(name)
    return name
