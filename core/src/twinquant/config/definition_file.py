"""Reading simplified configurations (.cfg): protobuf text to a `Definition`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import text_format

from twinquant.config.files import read_text
from twinquant.config.parameters import ACTIVATION, DMQ_BALANCER_PARAM, GENERAL, WEIGHT, Parameter, read_value
from twinquant.config.quant_config import ActivationConfig, WeightConfig
from twinquant.config.schema import amct_config_message
from twinquant.config.settings import Definition, LayerSettings, NamedSettings, Origin, Scope, Setting, suggestion
from twinquant.errors import ConfigError

__all__ = ["read_definition"]

_NUM_BITS = {"INT4": 4, "INT8": 8, "INT16": 16}
_DEFAULT_STRENGTH = 0.5
_ACTIVATION_BLOCKS = {"ifmr_quantize": "ifmr", "hfmg_quantize": "hfmg"}
_WEIGHT_BLOCKS = {"arq_quantize": "arq_quantize", "ada_quantize": "ada_quantize"}
_RENAMED = {"quant_bits": "num_bits", "dst_type": "num_bits"}
_RANGES: dict[str, tuple[float, float]] = {
    "search_range": ActivationConfig().search_range,
    "beta_range": WeightConfig().beta_range,
}

_UNKNOWN_FIELD = re.compile(r'Message type "([^"]+)" has no field named "(.+)"')
_POSITION = re.compile(r"^\d+:\d+ : ")
_LONGEST_DETAIL = 300
_LANDMARK = re.compile(
    r"""(?P<skipped> "(?:[^"\\\n]|\\.)*"? | '(?:[^'\\\n]|\\.)*'? | \#[^\n]*)
      | (?P<opening> [{<])
      | (?P<closing> [}>])
      | (?P<name> [A-Za-z_]\w*)""",
    re.VERBOSE,
)


def read_definition(path: Path) -> Definition:
    """Read a simplified configuration.

    A block of a layer or of a type stands for itself: what it leaves out has its default, whatever the common block
    says. Only `asymmetric` is looked up in all of them, which is done where layers are known.

    Raises:
        ConfigError: the file is missing or no text, has an unknown field, or a value that is not allowed.
    """
    origin = Origin(path.name, scope=Scope.MODEL)
    text = read_text(path)
    message = amct_config_message()()
    try:
        text_format.Parse(text, message)
    except text_format.ParseError as error:
        raise _syntax_error(error, text, origin) from error
    return Definition(
        general=_general(message, origin),
        skip_layers=_names(message, "skip_layers", origin),
        skip_layer_types=_names(message, "skip_layer_types", origin),
        common=_layer_settings(message.common_config, origin.at("common_config")),
        types=_overrides(message, "override_layer_types", "layer_type", Origin(path.name, scope=Scope.TYPE)),
        layers=_overrides(message, "override_layer_configs", "layer_name", Origin(path.name, scope=Scope.LAYER)),
    )


def _general(message: Any, origin: Origin) -> dict[str, Setting]:
    fields = _present(message)
    return {
        name: read_value(fields[name], parameter, origin.at(name))
        for name, parameter in GENERAL.items()
        if name in fields
    }


def _names(message: Any, field: str, origin: Origin) -> tuple[Setting, ...]:
    return tuple(Setting(name, origin.at(field)) for name in getattr(message, field))


def _overrides(message: Any, field: str, key: str, origin: Origin) -> tuple[NamedSettings, ...]:
    found: list[NamedSettings] = []
    for index, block in enumerate(getattr(message, field)):
        here = Origin(origin.source, f"$.{field}[{index}]", origin.scope)
        for needed in (key, "calibration_config"):
            if not block.HasField(needed):
                raise here.at(needed).error(f"missing; a {field} block holds {key} and calibration_config")
        name = Setting(getattr(block, key), here.at(key))
        if any(other.name.value == name.value for other in found):
            raise name.error(f"{name.value!r} has a {field} block already; join the two")
        settings = _layer_settings(block.calibration_config, here.at("calibration_config"))
        found.append(NamedSettings(name, settings))
    return tuple(found)


def _layer_settings(message: Any, origin: Origin) -> LayerSettings:
    """Read a CalibrationConfig; an absent one says nothing."""
    strength = None
    if message.HasField("dmq_balancer"):
        value = _present(message.dmq_balancer).get("migration_strength", _DEFAULT_STRENGTH)
        strength = read_value(value, DMQ_BALANCER_PARAM, origin.at("dmq_balancer").at("migration_strength"))
    return LayerSettings(
        activation=_group(message, _ACTIVATION_BLOCKS, "act_algo", ACTIVATION.parameters, origin),
        weight=_group(message, _WEIGHT_BLOCKS, "wts_algo", WEIGHT.parameters, origin),
        dmq_balancer_param=strength,
    )


def _group(
    message: Any, blocks: Mapping[str, str], algorithm: str, parameters: Mapping[str, Parameter], origin: Origin
) -> dict[str, Setting]:
    """Read the block of an algorithm, of which there is one at most."""
    name = next((name for name in blocks if message.HasField(name)), None)
    if name is None:
        return {}
    here = origin.at(name)
    settings = {algorithm: Setting(blocks[name], here)}
    fields = _present(getattr(message, name))
    for target, (low, high) in _RANGES.items():
        start, end = f"{target}_start", f"{target}_end"
        given = [field for field in (start, end) if field in fields]
        if given:
            pair = [fields.pop(start, low), fields.pop(end, high)]
            settings[target] = read_value(pair, parameters[target], here.at(given[-1]))
    for field, value in fields.items():
        target = _RENAMED.get(field, field)
        settings[target] = read_value(_NUM_BITS.get(value, value), parameters[target], here.at(field))
    return settings


def _present(message: Any) -> dict[str, Any]:
    """Return the fields that a message has, with Python's values; messages within it are left out."""
    values = {}
    for descriptor, value in message.ListFields():
        if descriptor.message_type is not None:
            continue
        if descriptor.enum_type is not None:
            value = descriptor.enum_type.values_by_number[value].name
        elif isinstance(value, float):
            # The decimal number that was written, not the neighbouring float32: 0.7, not 0.699999988.
            value = float(np.format_float_scientific(np.float32(value)))
        elif not isinstance(value, (bool, int, str)):
            value = list(value)
        values[descriptor.name] = value
    return values


def _syntax_error(error: text_format.ParseError, text: str, origin: Origin) -> ConfigError:
    line, column = error.GetLine() or 1, error.GetColumn() or 1
    lines = text.split("\n")
    position = len("\n".join([*lines[: line - 1], lines[line - 1][: column - 1]]))
    path = _path_at(text, position)
    where = f"{origin.source}, line {line}, column {column}, {path}"
    unknown = _UNKNOWN_FIELD.search(str(error))
    if unknown is None:
        detail = _POSITION.sub("", str(error))[:_LONGEST_DETAIL]
        return ConfigError(f"{where}: not a simplified configuration: {detail}", path=path)
    message, field = unknown.groups()
    known = amct_config_message().DESCRIPTOR.file.message_types_by_name[message.rsplit(".", 1)[-1]].fields_by_name
    return ConfigError(f"{where}: unknown setting {field!r}; {suggestion(field, list(known))}", path=path)


def _path_at(text: str, position: int) -> str:
    """Return the path of the field that stands at or before a position: the names of the open blocks, and its own."""
    blocks: list[str] = []
    name = ""
    for landmark in _LANDMARK.finditer(text):
        if landmark.start() > position:
            break
        if landmark.lastgroup == "opening":
            blocks.append(name)
            name = ""
        elif landmark.lastgroup == "closing":
            name = blocks.pop() if blocks else ""
        elif landmark.lastgroup == "name":
            is_field = text[landmark.end() :].lstrip()[:1] in (":", "{", "<")
            name = landmark.group() if is_field or not name else name
    return ".".join(["$", *filter(None, [*blocks, name])])
