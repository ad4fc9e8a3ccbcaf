"""What an .onnx file holds, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx

from twinquant_onnx.constants import type_name
from twinquant_onnx.layers import LoadedModel, analyse
from twinquant_onnx.load import load_model
from twinquant_onnx.rnn import RNN_RULES

__all__ = ["inspect_model"]

_FLOAT = "float model"
"""The kind of a model that is no twin."""

_COMMON_OPERATORS = 8
"""How many operator types are listed by name."""


def inspect_model(source: Path) -> Sequence[tuple[str, str]]:
    """Return (fact, value) rows about a model file: its kind, versions, interface, operators and tensors.

    Raises:
        ModelFileError: the file is no ONNX model.
    """
    loaded = analyse(load_model(source))
    model, graph = loaded.graph.model, loaded.graph.model.graph
    operators = Counter(node.op_type for node in graph.node)
    common = ", ".join(f"{name} {count}" for name, count in operators.most_common(_COMMON_OPERATORS))
    more = len(operators) - _COMMON_OPERATORS
    stored = loaded.graph.store.entries
    external = [entry for entry in stored if entry.external]
    producer = " ".join(filter(None, (model.producer_name, model.producer_version))) or "unknown"
    kind = _kind(operators, loaded)
    return [
        ("kind", kind),
        ("producer", producer),
        ("IR version", str(model.ir_version)),
        ("operator sets", ", ".join(f"{o.domain or 'ai.onnx'} {o.version}" for o in model.opset_import)),
        *(("input", _value(value)) for value in graph.input),
        *(("output", _value(value)) for value in graph.output),
        ("nodes", f"{len(graph.node)}: {common}{f' and {more} more types' if more > 0 else ''}"),
        *([("quantizable layers", str(len(loaded.sites)))] if kind == _FLOAT else []),
        ("initializers", str(len(graph.initializer))),
        ("big tensors", f"{len(stored)}, {sum(entry.content.nbytes for entry in stored):,} bytes"),
        ("external tensors", f"{len(external)}, {sum(entry.content.nbytes for entry in external):,} bytes"),
    ]


def _kind(operators: Counter[str], loaded: LoadedModel) -> str:
    recurrent = sum(operators[rules.deploy_op_type] for rules in RNN_RULES.values())
    if operators["AscendQuant"] or operators["AscendDequant"] or recurrent:
        layers = operators["AscendDequant"] + recurrent
        return f"deploy model, {layers} x quantized layer, {operators['AscendQuant']} x AscendQuant"
    imitated = sum(name.endswith(".fakedequant.mul") for name in loaded.topology.names)
    imitated += sum(name.endswith(".anti_quant.fake_antiquant.mul") for name in loaded.topology.names)
    return f"fake-quant model, {imitated} x quantized layer" if imitated else _FLOAT


def _value(value: onnx.ValueInfoProto) -> str:
    if not value.type.HasField("tensor_type"):
        return f"{value.name}: {value.type.WhichOneof('value') or 'unknown type'}"
    tensor = value.type.tensor_type
    shape = "unknown shape"
    if tensor.HasField("shape"):
        dims = (d.dim_param or (str(d.dim_value) if d.HasField("dim_value") else "?") for d in tensor.shape.dim)
        shape = f"[{', '.join(dims)}]"
    return f"{value.name}: {type_name(tensor.elem_type)} {shape}"
