"""How many bytes a tensor needs."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import onnx

from twinquant.errors import ModelFileError

__all__ = ["check_embedded", "stored_nbytes", "tensor_label"]

_BITS = {
    **dict.fromkeys((25, 26), 2),  # UINT2, INT2
    **dict.fromkeys((21, 22, 23), 4),  # UINT4, INT4, FLOAT4E2M1
    **dict.fromkeys((27, 28), 6),  # FLOAT6E2M3, FLOAT6E3M2
    **dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8),  # UINT8, INT8, BOOL, the FLOAT8 types
    **dict.fromkeys((4, 5, 10, 16), 16),  # UINT16, INT16, FLOAT16, BFLOAT16
    **dict.fromkeys((1, 6, 12), 32),  # FLOAT, INT32, UINT32
    **dict.fromkeys((7, 11, 13, 14), 64),  # INT64, DOUBLE, UINT64, COMPLEX64
    15: 128,  # COMPLEX128
}
"""Bits of one value by ONNX element type, by number: older versions of onnx do not know all the names."""

_TYPED_FIELDS = {
    **{number: ("int32_data", 1) for number, bits in _BITS.items() if 8 <= bits <= 32},
    onnx.TensorProto.FLOAT: ("float_data", 1),
    onnx.TensorProto.DOUBLE: ("double_data", 1),
    onnx.TensorProto.COMPLEX64: ("float_data", 2),
    onnx.TensorProto.COMPLEX128: ("double_data", 2),
    onnx.TensorProto.INT64: ("int64_data", 1),
    onnx.TensorProto.UINT32: ("uint64_data", 1),
    onnx.TensorProto.UINT64: ("uint64_data", 1),
    onnx.TensorProto.STRING: ("string_data", 1),
}
"""Where values are that are not in raw_data, and how many entries make one value. Packed types are left out."""


def stored_nbytes(data_type: int, dims: Sequence[int]) -> int | None:
    """Return how many bytes the values of a tensor take as raw data, or None for strings and unknown element types."""
    bits = _BITS.get(data_type)
    return None if bits is None else (prod(dims) * bits + 7) // 8


def tensor_label(tensor: onnx.TensorProto, node: onnx.NodeProto | None) -> str:
    """Return how to speak of a tensor: by its name, or by the node whose attribute it is."""
    if node is None or tensor.name:
        return f"tensor {tensor.name!r}"
    return f"the tensor in node {node.name or ', '.join(node.output)!r} ({node.op_type})"


def check_embedded(tensor: onnx.TensorProto, node: onnx.NodeProto | None) -> None:
    """Check that a tensor whose data is in the message has as many values as its dims say.

    Raises:
        ModelFileError: it has more or fewer.
    """
    if tensor.HasField("raw_data"):
        expected, given = stored_nbytes(tensor.data_type, tensor.dims), len(tensor.raw_data)
        unit = "bytes"
    elif tensor.data_type in _TYPED_FIELDS:
        field, entries = _TYPED_FIELDS[tensor.data_type]
        expected, given, unit = prod(tensor.dims) * entries, len(getattr(tensor, field)), "values"
    else:
        return
    if expected is not None and given != expected:
        raise ModelFileError(
            f"{tensor_label(tensor, node)}: its dims {list(tensor.dims)} need {expected} {unit}, but it holds {given}: "
            "the model is truncated or damaged"
        )
