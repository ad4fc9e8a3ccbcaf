"""Which fields each dialect of record files knows, and whose dialect a file is in."""

from __future__ import annotations

from twinquant.records.record import Dialect

__all__ = ["detect_dialect", "known_fields"]

_FACTORS = ("scale_d", "offset_d", "scale_w", "offset_w")
_RNN_FACTORS = ("scale_h", "offset_h", "scale_r", "offset_r")
_TYPES = ("act_type", "wts_type")
_SHAPE = ("channels", "height", "width")
_ONNX_ONLY = ("is_tensor_quantize", "op_data_type", "cluster")

_KNOWN_FIELDS = {
    Dialect.TORCH: (
        *_FACTORS,
        "shift_bit",
        "tensor_balance_factor",
        "skip_fusion",
        "dst_type",
        *_TYPES,
        "fakequant_precision_mode",
        *_RNN_FACTORS,
        "kv_cache_value",
    ),
    Dialect.ONNX: (
        *_FACTORS,
        "shift_bit",
        "skip_fusion",
        "is_tensor_quantize",
        "tensor_balance_factor",
        "op_data_type",
        *_TYPES,
        "dst_type",
        "fakequant_precision_mode",
        *_RNN_FACTORS,
        "cluster",
    ),
    Dialect.CAFFE: (*_FACTORS, "shift_bit", *_SHAPE, "skip_fusion"),
    Dialect.THIRD_PARTY: (
        *_FACTORS,
        "shift_bit",
        *_SHAPE,
        "skip_fusion",
        "tensor_balance_factor",
        "dst_type",
        *_TYPES,
        "fakequant_precision_mode",
        *_RNN_FACTORS,
        *_ONNX_ONLY,
        "kv_cache_value",
    ),
}


def known_fields(dialect: Dialect) -> tuple[str, ...]:
    """Give the fields that a dialect's own reader accepts, in the order they are written in.

    The order is that of the dialect's field numbers as far as they are known.
    """
    return _KNOWN_FIELDS[dialect]


def detect_dialect(present: set[str]) -> Dialect:
    """Tell whose dialect a file is in from the fields it uses.

    The first rule that holds decides:

    1. `channels`, `height` or `width`: Caffe if its schema has all the fields present, otherwise third party.
    2. `is_tensor_quantize`, `op_data_type` or `cluster`: ONNX.
    3. `kv_cache_value`: torch.
    4. `shift_bit`: Caffe, because the other tools refuse it.
    5. Nothing that tells: ONNX. Such a file means the same in every dialect.

    Args:
        present: names of the fields inside the `value` blocks of the file, and `kv_cache_value` if there is one.
    """
    if present.intersection(_SHAPE):
        return Dialect.CAFFE if present <= set(_KNOWN_FIELDS[Dialect.CAFFE]) else Dialect.THIRD_PARTY
    if present.intersection(_ONNX_ONLY):
        return Dialect.ONNX
    if "kv_cache_value" in present:
        return Dialect.TORCH
    return Dialect.CAFFE if "shift_bit" in present else Dialect.ONNX
