"""The fields of record files: one table, the protobuf message built from it, and what each dialect knows of it."""

from twinquant.records.schema.dialects import detect_dialect, known_fields
from twinquant.records.schema.fields import KEY_FIELD, KV_CACHE_FIELDS, LAYER_FIELDS, FieldSpec, Kind
from twinquant.records.schema.messages import field_homes, record_file_message

__all__ = [
    "KEY_FIELD",
    "KV_CACHE_FIELDS",
    "LAYER_FIELDS",
    "FieldSpec",
    "Kind",
    "detect_dialect",
    "field_homes",
    "known_fields",
    "record_file_message",
]
