"""From finished stations and weights to records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.calibration.layer_weights import scales_of
from twinquant.calibration.station import Station
from twinquant.config import LayerConfig, QuantConfig
from twinquant.plan import LayerInfo
from twinquant.plan.rules import FRAMEWORK_RULES, KIND_RULES, FrameworkRules
from twinquant.records import Dialect, LayerRecord, RecordSet
from twinquant.records.schema import known_fields
from twinquant.registry import Framework

__all__ = ["assemble_records", "begin_records", "complete_records"]

Float32Array = npt.NDArray[np.float32]

_DIALECTS = {"torch": Dialect.TORCH, "caffe": Dialect.CAFFE}


def assemble_records(
    framework: Framework, graph: Any, layers: Sequence[LayerInfo], config: QuantConfig, stations: Sequence[Station]
) -> RecordSet:
    """Find the scales of the weights, and put every layer's factors into its record.

    Args:
        framework: the framework.
        graph: the float model, fused; its weights are not balanced.
        layers: every node of the model, in graph order.
        config: what was calibrated.
        stations: finished.

    Raises:
        ModelContentError: a weight cannot be quantized.
    """
    watched = {layer for station in stations for layer in station.watch.layers}
    balance = {station.watch.tap.layer: station.balance for station in stations if station.balance is not None}
    begun = begin_records(framework, graph, [layer for layer in layers if layer.name in watched], config, balance)
    return complete_records(begun, stations)


def begin_records(
    framework: Framework,
    graph: Any,
    layers: Sequence[LayerInfo],
    config: QuantConfig,
    balance: Mapping[str, Float32Array],
) -> RecordSet:
    """Find the scales of the weights: records that lack nothing but the factors of the activations.

    Args:
        framework: the framework.
        graph: the float model, fused; its weights are not balanced.
        layers: the layers that are quantized.
        config: how they are.
        balance: by layer, the factors that its weight is multiplied by first: float32 `(Cin,)`.

    Raises:
        ModelContentError: a weight cannot be quantized.
        ConfigError: a weight is to be quantized in a way that needs training.
    """
    records = {
        layer.name: _begun(framework, graph, layer, config, balance.get(layer.name)) for layer in layers if layer.kind
    }
    return RecordSet(records, _dialect(framework))


def complete_records(begun: RecordSet, stations: Sequence[Station]) -> RecordSet:
    """Put the factors of the activations into begun records.

    Args:
        begun: what `begin_records` returned.
        stations: finished; together they watched every layer that has a record.
    """
    records = dict(begun.records)
    for station in stations:
        factors = station.factors()
        scale, offset = ("scale_h", "offset_h") if station.watch.tap.hidden else ("scale_d", "offset_d")
        found: dict[str, Any] = {scale: factors.scale, offset: factors.offset}
        if not station.watch.tap.hidden and "act_type" in known_fields(begun.dialect):
            found["act_type"] = f"INT{factors.num_bits}"
        for layer in station.watch.layers:
            records[layer] = replace(records[layer], **found)
    return replace(begun, records=records)


def _begun(
    framework: Framework, graph: Any, layer: LayerInfo, config: QuantConfig, balance: Float32Array | None
) -> LayerRecord:
    assert layer.kind is not None  # only quantizable layers are watched
    rules = KIND_RULES[layer.kind]
    framework_rules = FRAMEWORK_RULES.get(framework.name, FrameworkRules())
    settings = config.layers[layer.name]
    fields: dict[str, Any] = {}
    if rules.weighted:
        fields["scale_w"] = _scales(framework, graph, layer, settings, balance)
        if "wts_type" in known_fields(_dialect(framework)):
            fields["wts_type"] = f"INT{settings.weight.num_bits}"
    elif framework_rules.pooling_has_weight_factors:
        fields["scale_w"] = np.ones(1, np.float32)
    if rules.gates:
        fields["scale_r"] = _scales(framework, graph, layer, settings, None, recurrence=True)
    for scale, offset in (("scale_w", "offset_w"), ("scale_r", "offset_r")):
        if scale in fields:
            fields[offset] = np.zeros(fields[scale].size, np.int32)
    if balance is not None:
        fields["tensor_balance_factor"] = balance
    if config.fakequant_precision_mode != "DEFAULT":
        fields["fakequant_precision_mode"] = config.fakequant_precision_mode
    if layer.name in config.skip_fusion_layers or (framework_rules.fused_when_saved and not config.do_fusion):
        fields["skip_fusion"] = True
    if layer.input_shape is not None:
        fields |= dict(zip(("channels", "height", "width"), layer.input_shape, strict=True))
    return LayerRecord(layer.name, **fields)


def _dialect(framework: Framework) -> Dialect:
    return _DIALECTS.get(framework.name, Dialect.ONNX)


def _scales(
    framework: Framework,
    graph: Any,
    layer: LayerInfo,
    settings: LayerConfig,
    balance: Any,
    *,
    recurrence: bool = False,
) -> Any:
    assert layer.kind is not None
    return scales_of(
        framework.weight(graph, layer.name, recurrence=recurrence),
        settings.weight.num_bits,
        channel_wise=settings.weight.channel_wise,
        gates=KIND_RULES[layer.kind].gates,
        balance=balance,
        label=f"layer {layer.name!r}{', recurrence weight' if recurrence else ''}",
    )
