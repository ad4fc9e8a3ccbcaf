"""The protobuf message that a simplified configuration (.cfg) is the text of, built at run time from a table.

Generated code is bound to one range of protobuf versions; descriptors built at run time work with every version. They
live in a pool of their own. Text format matches fields by name, so their numbers are their places in the table.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["amct_config_message"]

_PACKAGE = "twinquant.config"
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bool": _Field.TYPE_BOOL,
    "float": _Field.TYPE_FLOAT,
    "string": _Field.TYPE_STRING,
    "uint32": _Field.TYPE_UINT32,
}

_ENUMS = {
    "DataType": {"INT4": 0, "INT8": 1, "INT16": 2},
    "FakequantPrecisionMode": {"DEFAULT": 0, "FORCE_FP16_QUANT": 1},
}

_MESSAGES: dict[str, dict[str, str]] = {
    "AMCTConfig": {
        "batch_num": "uint32",
        "activation_offset": "bool",
        "skip_layers": "repeated string",
        "skip_layer_types": "repeated string",
        "do_fusion": "bool",
        "skip_fusion_layers": "repeated string",
        "fakequant_precision_mode": "FakequantPrecisionMode",
        "common_config": "CalibrationConfig",
        "override_layer_types": "repeated OverrideLayerType",
        "override_layer_configs": "repeated OverrideLayer",
    },
    "OverrideLayerType": {"layer_type": "string", "calibration_config": "CalibrationConfig"},
    "OverrideLayer": {"layer_name": "string", "calibration_config": "CalibrationConfig"},
    "CalibrationConfig": {
        "arq_quantize": "ARQuantize",
        "ada_quantize": "ADAquantize",
        "ifmr_quantize": "FMRQuantize",
        "hfmg_quantize": "HFMGQuantize",
        "dmq_balancer": "DMQBalancer",
    },
    "ARQuantize": {"channel_wise": "bool", "quant_bits": "uint32"},
    "ADAquantize": {
        "num_iteration": "uint32",
        "reg_param": "float",
        "beta_range_start": "float",
        "beta_range_end": "float",
        "warm_start": "float",
        "channel_wise": "bool",
    },
    "FMRQuantize": {
        "search_range_start": "float",
        "search_range_end": "float",
        "search_step": "float",
        "max_percentile": "float",
        "min_percentile": "float",
        "asymmetric": "bool",
        "dst_type": "DataType",
    },
    "HFMGQuantize": {"num_of_bins": "uint32", "asymmetric": "bool", "dst_type": "DataType"},
    "DMQBalancer": {"migration_strength": "float"},
}

_ONE_OF = {
    "CalibrationConfig": {
        "wts_quant_algo": ("arq_quantize", "ada_quantize"),
        "acts_quant_algo": ("ifmr_quantize", "hfmg_quantize"),
    }
}
"""Fields of which a message has one at most."""


@lru_cache(maxsize=1)
def amct_config_message() -> Any:
    """Give the class of the message that a .cfg file is the text of."""
    file = descriptor_pb2.FileDescriptorProto(name="twinquant_config.proto", package=_PACKAGE, syntax="proto2")
    for name, numbers in _ENUMS.items():
        enum = file.enum_type.add(name=name)
        for word, number in numbers.items():
            enum.value.add(name=word, number=number)
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for number, (field, kind) in enumerate(fields.items(), 1):
            _add_field(message, field, number, kind)
        for index, (group, members) in enumerate(_ONE_OF.get(name, {}).items()):
            message.oneof_decl.add(name=group)
            for added in message.field:
                if added.name in members:
                    added.oneof_index = index
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.AMCTConfig"))


def _add_field(message: Any, name: str, number: int, kind: str) -> None:
    kind, repeated = kind.removeprefix("repeated "), kind.startswith("repeated ")
    field = message.field.add(name=name, number=number)
    field.label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = _Field.TYPE_ENUM if kind in _ENUMS else _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"
