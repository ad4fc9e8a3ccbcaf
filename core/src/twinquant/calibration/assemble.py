"""From finished stations and weights to records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twinquant.calibration.layer_weights import scales_of
from twinquant.calibration.station import Station
from twinquant.config import LayerConfig, QuantConfig
from twinquant.errors import ConfigError
from twinquant.plan import LayerInfo
from twinquant.plan.rules import FRAMEWORK_RULES, KIND_RULES, FrameworkRules
from twinquant.records import Dialect, LayerRecord, RecordSet
from twinquant.registry import Framework
from twinquant.registry.float_model import Tap

__all__ = ["assemble_records", "check_weight_algorithms"]

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
    by_tap: dict[Tap, Station] = {}
    for station in stations:
        by_tap.update({Tap(layer, station.watch.tap.hidden): station for layer in station.watch.layers})
    records = {
        layer.name: _record(framework, graph, layer, config, by_tap) for layer in layers if Tap(layer.name) in by_tap
    }
    return RecordSet(records, _DIALECTS.get(framework.name, Dialect.ONNX))


def check_weight_algorithms(framework: Framework, config: QuantConfig) -> None:
    """Refuse a configuration that asks for the training of weights, before anything is measured.

    Raises:
        ConfigError: it does.
    """
    for layer in config.layers.values():
        if layer.quant_enable and layer.weight.algorithm != "arq_quantize":
            raise ConfigError(
                f"layer {layer.name!r}: {layer.weight.algorithm} trains the rounding of weights, which the "
                f"{framework.name} plugin does not; use arq_quantize",
                path=f"$.{layer.name}.weight_quant_params.wts_algo",
            )


def _record(
    framework: Framework, graph: Any, layer: LayerInfo, config: QuantConfig, stations: Mapping[Tap, Station]
) -> LayerRecord:
    assert layer.kind is not None  # only quantizable layers are watched
    rules = KIND_RULES[layer.kind]
    settings = config.layers[layer.name]
    station = stations[Tap(layer.name)]
    activation = station.factors()
    fields: dict[str, Any] = {
        "scale_d": activation.scale,
        "offset_d": activation.offset,
        "act_type": f"INT{activation.num_bits}",
    }
    if rules.weighted:
        fields["scale_w"] = _scales(framework, graph, layer, settings, station.balance)
        fields["wts_type"] = f"INT{settings.weight.num_bits}"
    elif FRAMEWORK_RULES.get(framework.name, FrameworkRules()).pooling_has_weight_factors:
        fields["scale_w"] = np.ones(1, np.float32)
    if rules.gates:
        hidden = stations[Tap(layer.name, hidden=True)].factors()
        fields |= {"scale_h": hidden.scale, "offset_h": hidden.offset}
        fields["scale_r"] = _scales(framework, graph, layer, settings, None, recurrence=True)
    for scale, offset in (("scale_w", "offset_w"), ("scale_r", "offset_r")):
        if scale in fields:
            fields[offset] = np.zeros(fields[scale].size, np.int32)
    if station.balance is not None:
        fields["tensor_balance_factor"] = station.balance
    if config.fakequant_precision_mode != "DEFAULT":
        fields["fakequant_precision_mode"] = config.fakequant_precision_mode
    if layer.name in config.skip_fusion_layers:
        fields["skip_fusion"] = True
    return LayerRecord(layer.name, **fields)


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
