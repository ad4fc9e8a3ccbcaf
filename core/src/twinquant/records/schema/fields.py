"""The fields that any dialect of record files knows.

Text format matches fields by name, so one superset reads every dialect. The numbers are those of the torch dialect;
fields that it does not have are numbered from 101, outside the range any dialect uses.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["KEY_FIELD", "KV_CACHE_FIELDS", "LAYER_FIELDS", "FieldSpec", "Kind"]


class Kind(Enum):
    """The protobuf scalar types that record files use."""

    FLOAT = "float"
    INT32 = "int32"
    UINT32 = "uint32"
    BOOL = "bool"
    STRING = "string"


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field of a record.

    Attributes:
        name: its spelling in files.
        number: its protobuf number, never seen in files.
        kind: the type of its values.
        repeated: whether it may have any number of values.
    """

    name: str
    number: int
    kind: Kind
    repeated: bool = False


KEY_FIELD = FieldSpec("key", 1, Kind.STRING)
"""The field of a record beside its blocks: the layer's name."""

LAYER_FIELDS = (
    FieldSpec("scale_d", 1, Kind.FLOAT),
    FieldSpec("offset_d", 2, Kind.INT32),
    FieldSpec("scale_w", 3, Kind.FLOAT, repeated=True),
    FieldSpec("offset_w", 4, Kind.INT32, repeated=True),
    FieldSpec("shift_bit", 5, Kind.UINT32, repeated=True),
    FieldSpec("tensor_balance_factor", 6, Kind.FLOAT, repeated=True),
    FieldSpec("skip_fusion", 9, Kind.BOOL),
    FieldSpec("dst_type", 10, Kind.STRING),
    FieldSpec("act_type", 11, Kind.STRING),
    FieldSpec("wts_type", 12, Kind.STRING),
    FieldSpec("fakequant_precision_mode", 13, Kind.STRING),
    FieldSpec("scale_h", 21, Kind.FLOAT),
    FieldSpec("offset_h", 22, Kind.INT32),
    FieldSpec("scale_r", 23, Kind.FLOAT, repeated=True),
    FieldSpec("offset_r", 24, Kind.INT32, repeated=True),
    FieldSpec("channels", 101, Kind.UINT32),
    FieldSpec("height", 102, Kind.UINT32),
    FieldSpec("width", 103, Kind.UINT32),
    FieldSpec("is_tensor_quantize", 104, Kind.BOOL),
    FieldSpec("op_data_type", 105, Kind.STRING),
    FieldSpec("cluster", 106, Kind.INT32, repeated=True),
)
"""The fields of a record's `value` block; each is an attribute of `LayerRecord`."""

KV_CACHE_FIELDS = (
    FieldSpec("scale", 1, Kind.FLOAT, repeated=True),
    FieldSpec("offset", 2, Kind.INT32, repeated=True),
)
"""The fields of a record's `kv_cache_value` block; each is an attribute of `KvCacheFactors`."""
