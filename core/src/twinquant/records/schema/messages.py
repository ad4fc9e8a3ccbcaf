"""The protobuf message of a whole record file, built at run time from the field table.

Generated code is bound to one range of protobuf versions; descriptors built at run time work with every version. They
live in a pool and a package of their own, so that a program may load the vendor's schema beside this one.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from twinquant.records.schema.fields import KEY_FIELD, KV_CACHE_FIELDS, LAYER_FIELDS, FieldSpec, Kind

__all__ = ["field_homes", "record_file_message"]

_PACKAGE = "twinquant.records"
_Field = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    Kind.FLOAT: _Field.TYPE_FLOAT,
    Kind.INT32: _Field.TYPE_INT32,
    Kind.UINT32: _Field.TYPE_UINT32,
    Kind.BOOL: _Field.TYPE_BOOL,
    Kind.STRING: _Field.TYPE_STRING,
}


@lru_cache(maxsize=1)
def record_file_message() -> Any:
    """Give the class of the message that a record file is the text of.

    Returns:
        The protobuf message class `ScaleOffsetRecord`: repeated `record` entries of `key`, `value` and
        `kv_cache_value`. `prune_record` has no fields: its contents are another feature's and are set aside before
        parsing.
    """
    file = descriptor_pb2.FileDescriptorProto(name="twinquant_records.proto", package=_PACKAGE, syntax="proto2")
    _add_message(file, "SingleLayerRecord", LAYER_FIELDS)
    _add_message(file, "KvCacheRecord", KV_CACHE_FIELDS)
    _add_message(file, "PruneRecord", ())
    entry = _add_message(file, "Record", (KEY_FIELD,))
    _add_block(entry, "value", 2, "SingleLayerRecord")
    _add_block(entry, "kv_cache_value", 3, "KvCacheRecord")
    whole = _add_message(file, "ScaleOffsetRecord", ())
    _add_block(whole, "record", 1, "Record", repeated=True)
    _add_block(whole, "prune_record", 2, "PruneRecord", repeated=True)

    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.ScaleOffsetRecord"))


def field_homes() -> dict[str, dict[str, str]]:
    """Tell where each field belongs, for messages about misplaced and misspelt fields.

    Returns:
        By full protobuf message name: by field name: where, such as "in a 'value' block".
    """
    return {
        f"{_PACKAGE}.ScaleOffsetRecord": dict.fromkeys(("record", "prune_record"), "at the top level of the file"),
        f"{_PACKAGE}.Record": dict.fromkeys(("key", "value", "kv_cache_value"), "in a 'record' block"),
        f"{_PACKAGE}.SingleLayerRecord": dict.fromkeys((spec.name for spec in LAYER_FIELDS), "in a 'value' block"),
        f"{_PACKAGE}.KvCacheRecord": dict.fromkeys(
            (spec.name for spec in KV_CACHE_FIELDS), "in a 'kv_cache_value' block"
        ),
    }


def _add_message(file: Any, name: str, specs: Iterable[FieldSpec]) -> Any:
    message = file.message_type.add(name=name)
    for spec in specs:
        label = _Field.LABEL_REPEATED if spec.repeated else _Field.LABEL_OPTIONAL
        message.field.add(name=spec.name, number=spec.number, type=_TYPES[spec.kind], label=label)
    return message


def _add_block(message: Any, name: str, number: int, type_name: str, *, repeated: bool = False) -> None:
    label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    type_name = f".{_PACKAGE}.{type_name}"
    message.field.add(name=name, number=number, type=_Field.TYPE_MESSAGE, type_name=type_name, label=label)
