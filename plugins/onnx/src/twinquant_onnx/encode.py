"""A model as the pieces of one ordinary protobuf message: big tensors are passed on or computed when they are written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from twinquant_onnx.graph import TensorStore, stored_index
from twinquant_onnx.tensors import TensorBytes

__all__ = ["EncodedModel", "encode_model", "holders_of_tensors"]

_TENSOR_FIELDS: dict[type[Any], tuple[str, ...]] = {
    onnx.ModelProto: ("graph", "functions", "training_info"),
    onnx.TrainingInfoProto: ("initialization", "algorithm"),
    onnx.FunctionProto: ("node",),
    onnx.GraphProto: ("node", "initializer", "sparse_initializer"),
    onnx.NodeProto: ("attribute",),
    onnx.AttributeProto: ("t", "tensors", "sparse_tensor", "sparse_tensors", "g", "graphs"),
    onnx.SparseTensorProto: ("values", "indices"),
}
