"""Which element type and rank each tensor has, as far as it can be known without running the model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
from onnx import shape_inference

from twinquant_onnx.graph import OnnxGraph, TensorStore

__all__ = ["TensorTypes", "infer_types"]

_log = logging.getLogger(__name__)

_SHAPE_BYTES = 1024
"""Integer tensors up to this size may be shapes."""


@dataclass(frozen=True, slots=True)
class TensorTypes:
    """What is known about the tensors of a main graph.

    Attributes:
        element: ONNX element type by tensor.
        rank: rank by tensor.
    """

    element: dict[str, int]
    rank: dict[str, int]


def infer_types(loaded: OnnxGraph) -> TensorTypes:
    """Infer types and ranks. Quick, as the message holds no big tensors; what is unknown is left out."""
    model = _with_shapes(loaded)
    try:
        graph = shape_inference.infer_shapes(model).graph
    except (shape_inference.InferenceError, ValueError, RuntimeError) as error:
        # onnx raises RuntimeError for operators whose inference fails outright; declared types remain usable.
        _log.info("shape inference failed, only declared types are known: %s", error)
        graph = model.graph
    element: dict[str, int] = {}
    rank: dict[str, int] = {}
    for values in (graph.value_info, graph.input, graph.output):
        for value in values:
            if not value.type.HasField("tensor_type"):
                continue
            tensor_type = value.type.tensor_type
            if tensor_type.elem_type:
                element[value.name] = tensor_type.elem_type
            if tensor_type.HasField("shape"):
                rank[value.name] = len(tensor_type.shape.dim)
    for tensor in model.graph.initializer:
        element[tensor.name] = tensor.data_type
        rank[tensor.name] = len(tensor.dims)
    return TensorTypes(element, rank)


def _with_shapes(loaded: OnnxGraph) -> onnx.ModelProto:
    """Return the model with its small integer tensors in the message.

    They may be external, and behind a Reshape to an external shape onnx 1.23 infers nothing at all, not even types.
    """
    if not any(_may_be_shape(tensor, loaded.store) for tensor in _constants(loaded.model.graph)):
        return loaded.model
    model = onnx.ModelProto()
    model.CopyFrom(loaded.model)
    for tensor in _constants(model.graph):
        if _may_be_shape(tensor, loaded.store):
            loaded.store.detach(tensor)
    return model


def _may_be_shape(tensor: onnx.TensorProto, store: TensorStore) -> bool:
    if tensor.data_type not in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
        return False
    stored = store.get(tensor)
    return stored is not None and stored.content.nbytes <= _SHAPE_BYTES


def _constants(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for node in graph.node:
        if node.op_type == "Constant":
            yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))
