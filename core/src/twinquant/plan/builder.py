"""The plan: records and layer descriptions in, every decision out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from difflib import get_close_matches

import numpy as np

from twinquant.errors import RecordFileError, RecordLayerError, RecordValueError
from twinquant.numerics import dequant_scale, float16_scale
from twinquant.plan.factors import Factors, check_factors, missing_factors
from twinquant.plan.insertion import (
    ActivationQuant,
    BiasQuant,
    LayerPlan,
    OutputDequant,
    QuantPlan,
    SkippedLayer,
    WeightQuant,
)
from twinquant.plan.layer import LayerInfo
from twinquant.plan.rules import KIND_RULES
from twinquant.records import LayerRecord, RecordSet

__all__ = ["build_plan"]

_TENSOR_KEY = re.compile(r"(?P<layer>.+):(?P<index>\d+)")


def build_plan(records: RecordSet, layers: Sequence[LayerInfo], framework: str) -> QuantPlan:
    """Decide what is inserted where.

    Args:
        records: what calibration measured.
        layers: every node of the graph, in graph order.
        framework: name of the framework that the graph belongs to.

    Returns:
        the plan: a function of its arguments alone.

    Raises:
        RecordFileError: there are no records.
        RecordLayerError: a record names no layer of the graph, an ambiguous one, or one that cannot be quantized.
        RecordValueError: a record's factors are incomplete or wrong for its layer.
    """
    if not len(records):
        raise RecordFileError(
            f"{records.source}: there is no record at all. Calibration has not finished: run the batch_num forward "
            "passes first"
        )
    by_name: dict[str, list[LayerInfo]] = {}
    for layer in layers:
        by_name.setdefault(layer.name, []).append(layer)
    named = [(record, _layer_of(record, by_name, records.source)) for record in records]
    _refuse_incomplete(named, framework, records.source)
    factors = {layer.name: check_factors(record, layer, framework, records.source) for record, layer in named}

    owners: dict[tuple[str, float, int, int], str] = {}
    planned: list[LayerPlan] = []
    skipped: list[SkippedLayer] = []
    for layer in layers:
        if layer.name in factors:
            planned.append(_plan_layer(layer, factors[layer.name], owners))
        else:
            skipped.append(SkippedLayer(layer.name, layer.op_type, _reason(layer)))
    return QuantPlan(framework, tuple(planned), tuple(skipped), records.warnings)


def _layer_of(record: LayerRecord, by_name: dict[str, list[LayerInfo]], source: str) -> LayerInfo:
    where = f"{source}, record {record.key!r}" + (f" (line {record.line})" if record.line else "")

    def error(problem: str) -> RecordLayerError:
        return RecordLayerError(f"{where}: {problem}", key=record.key)

    if record.kv_cache is not None:
        raise error("it holds key/value cache factors, which save_model does not apply; remove the record")
    found = by_name.get(record.key, [])
    if not found:
        tensor = _TENSOR_KEY.fullmatch(record.key)
        if record.is_tensor_quantize or (tensor and tensor["layer"] in by_name):
            raise error("it is about a single tensor, which save_model does not quantize; remove the record")
        close = get_close_matches(record.key, by_name, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "is this the record of another model?"
        raise error(f"the graph has no layer of this name; {hint}")
    if len(found) > 1:
        raise error(f"{len(found)} nodes of the graph have this name; give them different names, so that one is meant")
    layer = found[0]
    if record.is_tensor_quantize:
        raise error("it is marked as being about a tensor, which save_model does not quantize; remove the record")
    if layer.refusal is not None or layer.kind is None:
        raise error(f"the {layer.op_type} layer cannot be quantized: {_reason(layer)}; remove the record")
    return layer


def _refuse_incomplete(named: Sequence[tuple[LayerRecord, LayerInfo]], framework: str, source: str) -> None:
    """Tell of all records that lack factors at once; of a single one, `check_factors` tells more."""
    missing = {record.key: missing_factors(record, layer, framework) for record, layer in named}
    lacking = {key: fields for key, fields in missing.items() if fields}
    if len(lacking) < 2:
        return
    listed = [f"{key} ({', '.join(fields)})" for key, fields in lacking.items()]
    raise RecordValueError(
        f"{source}: {len(lacking)} records lack factors: "
        f"{'; '.join(listed)}. Calibration has not "
        "finished: run the batch_num forward passes first, or remove a record to leave its layer unquantized",
        key=next(iter(lacking)),
    )


def _reason(layer: LayerInfo) -> str:
    if layer.refusal is not None:
        return layer.refusal
    if layer.kind is None:
        return f"operators of type {layer.op_type} are not quantized"
    return "no record names it"


def _plan_layer(layer: LayerInfo, factors: Factors, owners: dict[tuple[str, float, int, int], str]) -> LayerPlan:
    """Plan one layer; `owners` collects which layer's quantization node serves which tensor."""
    rnn = layer.kind is not None and bool(KIND_RULES[layer.kind].gates)
    owner = layer.name
    if factors.balance is None and not rnn:
        owner = owners.setdefault((layer.activation, factors.scale_d, factors.offset_d, factors.act_bits), layer.name)
    scale = dequant_scale(factors.scale_w, factors.scale_d)
    weighted = layer.kind is not None and KIND_RULES[layer.kind].weighted
    hidden = recurrence = recurrence_scale = None
    output = float16_scale(scale) if factors.float16_precision and not rnn else scale
    if factors.scale_h is not None and factors.scale_r is not None:
        hidden = ActivationQuant(factors.scale_h, factors.offset_h, factors.act_bits, layer.name)
        recurrence = WeightQuant(factors.scale_r, factors.wts_bits, factors.packed_weight)
        recurrence_scale = dequant_scale(factors.scale_r, factors.scale_h)
        output = np.concatenate([scale, recurrence_scale])
    return LayerPlan(
        layer=layer,
        activation=ActivationQuant(factors.scale_d, factors.offset_d, factors.act_bits, owner, factors.balance),
        weight=WeightQuant(factors.scale_w, factors.wts_bits, factors.packed_weight) if weighted else None,
        bias=BiasQuant(scale, recurrence_scale, cast_to_float=factors.act_bits == 4) if layer.has_bias else None,
        output=OutputDequant(output),
        hidden=hidden,
        recurrence=recurrence,
    )
