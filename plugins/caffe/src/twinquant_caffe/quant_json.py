"""`quant.json`: what the vendor's accuracy comparison tools read to match a deploy net with the original one."""

from __future__ import annotations

import json
from typing import Any

from twinquant.outputs import Flavor
from twinquant.plan import QuantPlan
from twinquant_caffe.insert import build_twin
from twinquant_caffe.insert.names import name_insertions
from twinquant_caffe.net import BlobVersion, CaffeNet

__all__ = ["format_quant_json"]

_STRINGS = 1
"""The list type of the tools for texts."""


def format_quant_json(net: CaffeNet, plan: QuantPlan) -> str:
    """Return the content of `quant.json` for a net and its plan: about the deploy net, whichever twin is saved.

    Args:
        net: the float net, fused; its `fused` tells which original layers each of its layers stands for.
        plan: what is inserted where.
    """
    name = net.head.text("name")
    return json.dumps({"name": name, "graph": [{"name": name, "op": _operations(net, plan)}]}, indent=2) + "\n"


def _operations(net: CaffeNet, plan: QuantPlan) -> list[dict[str, Any]]:
    """Describe every layer of the deploy net, in order."""
    originals = dict(net.fused)
    dequants: dict[str, str] = {}
    inserted = name_insertions(net, plan)
    for layer in plan:
        names = inserted[layer.name]
        stands_for = net.original_names(layer.name)
        originals |= {layer.name: stands_for, names.dequant: stands_for}
        originals.setdefault(names.quant, stands_for)
        dequants[names.dequant] = stands_for[-1]
    writers: dict[BlobVersion, str] = {}
    operations: list[dict[str, Any]] = []
    for index, deployed in enumerate(build_twin(net, plan, Flavor.DEPLOY).layers):
        operation: dict[str, Any] = {
            "name": deployed.name,
            "type": deployed.type,
            "id": index,
            "input": [writers[version] for version in deployed.reads],
            "attr": _attributes(originals.get(deployed.name, ())),
        }
        if deployed.name in dequants:
            operation["output_desc"] = [_origin(dequants[deployed.name])]
        operations.append(operation)
        writers |= {version: f"{deployed.name}:{place}" for place, version in enumerate(deployed.writes)}
    return operations


def _attributes(originals: tuple[str, ...]) -> list[dict[str, Any]]:
    if not originals:
        return []
    value = {"list": {"val_type": _STRINGS, "s": list(originals)}}
    return [{"key": "_datadump_original_op_names", "value": value}]


def _origin(last: str) -> dict[str, Any]:
    """Describe the output of a DeQuant: it is that of the last original layer."""
    values: dict[str, dict[str, Any]] = {
        "_datadump_origin_name": {"s": last},
        "_datadump_origin_output_index": {"i": 0},
        "_datadump_origin_format": {"s": "NCHW"},
    }
    return {"dtype": "DT_FLOAT", "attr": [{"key": key, "value": value} for key, value in values.items()]}
