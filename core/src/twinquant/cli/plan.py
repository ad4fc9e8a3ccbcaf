"""`twinquant plan`: what a save would do to every node, without writing anything."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Iterator, Sequence

from twinquant.cli.console import Console
from twinquant.cli.numbers import count, number, spread
from twinquant.cli.sources import open_model
from twinquant.plan import ActivationQuant, LayerInfo, LayerPlan, QuantPlan, WeightQuant, build_plan
from twinquant.records import parse_record_file

__all__ = ["run"]

_log = logging.getLogger(__name__)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Print one row per node and a line that sums up."""
    framework, path = open_model(arguments.model, arguments.framework)
    loaded = framework.load(str(path))
    if arguments.record is None:
        layers = framework.layers(loaded)
        console.table(("node", "operator", "quantizable", "as, or why not"), map(_possible_row, layers))
        possible = sum(_is_possible(layer) for layer in layers)
        console.line(f"\n{possible} of {count(len(layers), 'node')} can be quantized")
        return 0
    records = parse_record_file(arguments.record)
    layers = framework.layers(framework.prepare(loaded, records))
    plan = build_plan(records, layers, framework.name)
    console.table(("node", "operator", "quantized", "factors, or why not"), _planned_rows(layers, plan))
    for warning in plan.warnings:
        _log.warning(warning)
    unnamed = sum(_is_possible(layer) for layer in layers) - len(plan)
    more = f"; {count(unnamed, 'quantizable layer')} without a record" if unnamed else ""
    console.line(f"\n{len(plan)} of {count(len(layers), 'node')} will be quantized{more}")
    return 0


def _is_possible(layer: LayerInfo) -> bool:
    return layer.kind is not None and layer.refusal is None


def _possible_row(layer: LayerInfo) -> tuple[str, str, str, str]:
    if layer.kind is not None and layer.refusal is None:
        return layer.name, layer.op_type, "yes", layer.kind.value
    reason = layer.refusal or f"operators of type {layer.op_type} are not quantized"
    return layer.name, layer.op_type, "no", reason


def _planned_rows(layers: Sequence[LayerInfo], plan: QuantPlan) -> Iterator[tuple[str, str, str, str]]:
    """Yield the planned and the skipped nodes in graph order; the plan keeps them apart."""
    planned = {layer.name: layer for layer in plan}
    skipped = iter(plan.skipped)
    for layer in layers:
        if layer.name in planned:
            yield layer.name, layer.op_type, "yes", _factors(planned[layer.name])
        else:
            yield layer.name, layer.op_type, "no", next(skipped).reason


def _factors(layer: LayerPlan) -> str:
    """Say in one line what a layer's slots hold."""
    slots = [_activation("input", layer.activation, layer.name)]
    if layer.weight is not None:
        slots.append(_weight("weight", layer.weight))
    if layer.hidden is not None:
        slots.append(_activation("hidden state", layer.hidden, layer.name))
    if layer.recurrence is not None:
        slots.append(_weight("recurrence weight", layer.recurrence))
    if layer.bias is not None:
        slots.append("bias INT32")
    return "; ".join(slots)


def _activation(what: str, quant: ActivationQuant, layer: str) -> str:
    text = f"{what} INT{quant.num_bits} scale {number(quant.scale)} offset {quant.offset}"
    if quant.balance is not None:
        text += f" balanced by {spread(quant.balance)}"
    return text if quant.owner == layer else f"{text} (shared with {quant.owner})"


def _weight(what: str, quant: WeightQuant) -> str:
    packed = " packed" if quant.packed else ""
    return f"{what} INT{quant.num_bits}{packed} scale {spread(quant.scale)}"
