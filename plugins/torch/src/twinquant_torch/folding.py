"""Computing what is constant in a graph of the dynamo exporter, without its fusions and without copies of weights."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
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
    are computed, as those of recurrent layers and of normalized weights are, become constants of any size; those that
    are parts of a parameter, as in attention, become views of it.
    """
    _fold(model)
    if _split_constants(model.graph):
        _fold(model)
    _drop_bad_biases(model.graph)
    optimizer.remove_unused_nodes(model)


def _fold(model: onnx_ir.Model) -> None:
    wanted = _makers_of_weights(model.graph)

    def should_fold(node: Any) -> bool | None:
        if node.op_type == "Transpose" and node.inputs[0].is_initializer() and node not in wanted:
            return False
        return True if node in wanted else None

    optimizer.fold_constants(model, should_fold=should_fold)


def _split_constants(graph: Any) -> bool:
    """Replace the parts that constants are split into by constants: onnxscript folds no node of several outputs.

    Edits `graph`.

    Returns:
        whether there were any.
    """
    found = [
        node
        for node in graph
        if node.op_type == "Split"
        and not node.domain
        and all(value is None or _array(value) is not None for value in node.inputs)
        and not any(value.is_graph_output() for value in node.outputs)
    ]
    for node in found:
        whole, axis = _array(node.inputs[0]), node.attributes.get_int("axis", 0)
        length, count = whole.shape[axis], len(node.outputs)
        sizes = _array(node.inputs[1]) if len(node.inputs) > 1 else None
        if sizes is None:
            each = -(-length // count)
            sizes = [each] * (count - 1) + [length - each * (count - 1)]
        bounds = [0, *np.cumsum(sizes).tolist()]
        element_type = node.inputs[0].const_value.dtype
        for value, (start, stop) in zip(node.outputs, pairwise(bounds), strict=True):
            part = np.take(whole, range(start, stop), axis) if axis else whole[start:stop]
            tensor = onnx_ir.Tensor(np.ascontiguousarray(part), dtype=element_type, name=value.name)
            constant = onnx_ir.Value(
                name=value.name, type=onnx_ir.TensorType(element_type), shape=tensor.shape, const_value=tensor
            )
            onnx_ir.convenience.replace_all_uses_with(value, constant)
            value.name = None
            graph.register_initializer(constant)
    graph.remove(found, safe=True)
    return bool(found)


def _drop_bad_biases(graph: Any) -> None:
    """Drop the bias that onnxscript 0.7 gives a Conv3d without one: zeros of a shape that no runtime takes.

    Edits `graph`.
    """
    for node in graph:
        if node.op_type != "Conv" or node.domain or len(node.inputs) < 3:
            continue
        weight, bias = node.inputs[1], node.inputs[2]
        zeros = None if bias is None else _array(bias)
        if zeros is not None and zeros.shape != (weight.shape[0],) and not zeros.any():
            node.resize_inputs(2)


def _array(value: Any) -> Any:
    """Return a constant as an array; None: it is none."""
    if value.is_graph_input() or value.const_value is None:
        return None
    return value.const_value.numpy()


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
