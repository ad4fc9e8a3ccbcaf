"""Which element type and rank each tensor has, as far as it can be known without running the model."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import onnx
from onnx import shape_inference

__all__ = ["TensorTypes", "infer_types"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TensorTypes:
    """What is known about the tensors of a main graph.

    Attributes:
        element: ONNX element type by tensor.
        rank: rank by tensor.
    """

    element: dict[str, int]
    rank: dict[str, int]


def infer_types(model: onnx.ModelProto) -> TensorTypes:
    """Infer types and ranks. Quick, as the message holds no big tensors; what is unknown is left out."""
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
