"""Records that fit a graph, without a calibration."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from twinquant.plan import LayerInfo
from twinquant.plan.rules import FRAMEWORK_RULES, KIND_RULES, FrameworkRules
from twinquant.records import LayerRecord, RecordSet

__all__ = ["records_for"]


def records_for(layers: Sequence[LayerInfo], framework: str = "") -> RecordSet:
    """Return a complete, legal record for every quantizable layer.

    The factors are made up, and differ between layers and channels, so that mixing two of them up shows. They suit
    weights and activations of about -1 to 1.

    Args:
        layers: what `Framework.layers` returned.
        framework: the framework's name: some have rules of their own for records.
    """
    quantizable = [layer for layer in layers if layer.kind is not None and layer.refusal is None]
    rules = FRAMEWORK_RULES.get(framework, FrameworkRules())
    return RecordSet({layer.name: _record(index, layer, rules) for index, layer in enumerate(quantizable)})


def _record(index: int, layer: LayerInfo, rules: FrameworkRules) -> LayerRecord:
    if layer.kind is None:
        raise ValueError(f"layer {layer.name!r} is of no quantizable kind")
    kind = KIND_RULES[layer.kind]
    scale_d = float(np.float32(0.01 + 0.003 * index))
    offset_d = index % 5 - 2
    if not kind.weighted:
        ones = np.ones(1 if rules.pooling_has_weight_factors else 0, np.float32)
        return LayerRecord(layer.name, scale_d=scale_d, offset_d=offset_d, scale_w=ones, offset_w=_zeros(ones.size))
    count = kind.gates or (layer.out_channels or 1 if kind.per_channel else 1)
    scale_w = (0.008 + 0.001 * np.arange(count) / count + 0.0005 * index).astype(np.float32)
    if not kind.gates:
        return LayerRecord(layer.name, scale_d=scale_d, offset_d=offset_d, scale_w=scale_w, offset_w=_zeros(count))
    return LayerRecord(
        layer.name,
        scale_d=scale_d,
        offset_d=offset_d,
        scale_w=scale_w,
        offset_w=_zeros(count),
        scale_h=float(np.float32(0.009)),
        offset_h=1,
        scale_r=scale_w * np.float32(1.25),
        offset_r=_zeros(count),
    )


def _zeros(count: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.zeros(count, np.int32)
