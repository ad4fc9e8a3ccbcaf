"""Computing what is constant in a graph of the dynamo exporter, without its fusions and without copies of weights."""

from __future__ import annotations

from typing import Any

import onnx_ir
from onnxscript import optimizer

__all__ = ["fold_constants"]

_WEIGHTS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (1,),
    "LSTM": (1, 2, 3),
    "GRU": (1, 2, 3),
}
"""The inputs that must be constants for a layer to be quantized, however large they are."""


def fold_constants(model: onnx_ir.Model) -> None:
    """Compute the constants of a model and drop what nobody reads. Edits `model`.

    A transposed weight stays what it is, the module's own tensor behind a Transpose: nothing is copied. Weights that
    are computed, as those of recurrent layers and of normalized weights are, become constants of any size.
    """
    wanted = _makers_of_weights(model.graph)

    def should_fold(node: Any) -> bool | None:
        if node.op_type == "Transpose" and node.inputs[0].is_initializer() and node not in wanted:
            return False
        return True if node in wanted else None

    optimizer.fold_constants(model, should_fold=should_fold)
    optimizer.remove_unused_nodes(model)


def _makers_of_weights(graph: Any) -> set[Any]:
    """Return the nodes that compute weights from nothing but constants; a Transpose alone is no computation."""
    wanted: set[Any] = set()
    for node in graph:
        for slot in _WEIGHTS.get(node.op_type, ()):
            value = node.inputs[slot] if slot < len(node.inputs) else None
            maker = None if value is None else value.producer()
            if maker is None or (node.op_type == "MatMul" and maker.op_type == "Transpose" and _is_given(maker)):
                continue
            wanted |= _constant_makers(value)
    return wanted


def _is_given(transpose: Any) -> bool:
    return bool(transpose.inputs[0].is_initializer())


def _constant_makers(value: Any) -> set[Any]:
    """Return the nodes that a value is computed by; none if it depends on an input of the graph."""
    makers: set[Any] = set()
    left = [value]
    while left:
        value = left.pop()
        if value is None or value.is_initializer():
            continue
        maker = value.producer()
        if maker is None:
            return set()
        if maker not in makers:
            makers.add(maker)
            left.extend(maker.inputs)
    return makers
