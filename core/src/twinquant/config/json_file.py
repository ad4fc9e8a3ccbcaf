"""Configurations as JSON, the vendor's form: read to a `Definition`, written from a `QuantConfig`."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from twinquant.config.files import read_text, write_text
from twinquant.config.parameters import (
    ACTIVATION,
    DMQ_BALANCER_PARAM,
    GENERAL,
    QUANT_ENABLE,
    WEIGHT,
    Group,
    read_group,
    read_value,
)
from twinquant.config.quant_config import ActivationConfig, LayerConfig, QuantConfig, WeightConfig
from twinquant.config.settings import Definition, LayerSettings, NamedSettings, Origin, Setting, suggestion
from twinquant.errors import ConfigError

__all__ = ["read_finished", "read_json", "write_config"]

_LAYER_MEMBERS = ("quant_enable", "dmq_balancer_param", "activation_quant_params", "weight_quant_params")


def read_json(path: Path, layer_names: Iterable[str]) -> Definition:
    """Read a configuration in JSON.

    Args:
        path: the file.
        layer_names: the names of the model's layers, for messages about unknown keys.

    Raises:
        ConfigError: the file is missing, empty or no JSON, has an unknown or a repeated key, or a value that is not
            allowed.
    """
    origin = Origin(path.name)
    text = read_text(path)
    if not text.strip():
        raise origin.error("the file is empty; write it anew, or do without it to have the defaults")
    try:
        content = json.loads(text, object_pairs_hook=_Members)
        _refuse_repeated_keys(content, origin)
        if not isinstance(content, Mapping):
            raise origin.error(f"must be an object of settings and layers, got {content!r:.80}")
        return _definition(content, layer_names, origin)
    except json.JSONDecodeError as error:
        where = f"{path.name}, line {error.lineno}, column {error.colno}"
        raise ConfigError(f"{where}: not JSON: {error.msg}", path="$") from error
    except RecursionError as error:
        raise origin.error("nested far too deeply for a configuration, which has four levels") from error


def read_finished(config: QuantConfig, layer_names: Iterable[str], source: str) -> Definition:
    """Read a finished configuration, as if it had been written to a file.

    Args:
        config: the configuration; whoever made it may have made mistakes.
        layer_names: the names of the model's layers, for messages about unknown ones.
        source: how messages call it.

    Raises:
        ConfigError: it has a layer that the model has not, or a value that is not allowed.
    """
    origin = Origin(source)
    for name, layer in config.layers.items():
        for part, settings, group in (
            ("activation_quant_params", layer.activation, ACTIVATION),
            ("weight_quant_params", layer.weight, WEIGHT),
        ):
            here = origin.at(str(name)).at(part).at(group.algorithm)
            read_value(settings.algorithm, group.parameters[group.algorithm], here)
    return _definition(_content(config), layer_names, origin)


def _definition(content: Mapping[str, Any], layer_names: Iterable[str], origin: Origin) -> Definition:
    known = {*GENERAL, *layer_names}
    layers = []
    for name, value in content.items():
        if name in GENERAL:
            continue
        if name not in known:
            hint = suggestion(name, sorted(known))
            raise origin.at(name).error(f"neither a setting nor a layer of the model; {hint}")
        layers.append(NamedSettings(Setting(name, origin.at(name)), _layer_settings(value, origin.at(name))))
    general = {name: value for name, value in content.items() if name in GENERAL}
    return Definition(general=read_group(general, GENERAL, origin), layers=tuple(layers))


class _Members(dict[str, Any]):
    """A JSON object that remembers which of its keys occur twice."""

    def __init__(self, pairs: list[tuple[str, Any]]) -> None:
        super().__init__(pairs)
        self.repeated = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]


def _refuse_repeated_keys(value: Any, origin: Origin) -> None:
    if not isinstance(value, _Members):
        return
    for name in value.repeated:
        raise origin.at(name).error("occurs twice; remove one of the two")
    for name, inner in value.items():
        _refuse_repeated_keys(inner, origin.at(name))


def _layer_settings(value: Any, origin: Origin) -> LayerSettings:
    if not isinstance(value, Mapping):
        raise origin.error(f"must be an object of a layer's settings ({', '.join(_LAYER_MEMBERS)}), got {value!r}")
    for name in value:
        if name not in _LAYER_MEMBERS:
            raise origin.at(name).error(f"unknown setting; {suggestion(name, _LAYER_MEMBERS)}")
    if "quant_enable" not in value:
        raise origin.at("quant_enable").error("missing; must be true or false")
    strength = None
    if "dmq_balancer_param" in value:
        strength = read_value(value["dmq_balancer_param"], DMQ_BALANCER_PARAM, origin.at("dmq_balancer_param"))
    return LayerSettings(
        activation=_group(value, "activation_quant_params", ACTIVATION, origin),
        weight=_group(value, "weight_quant_params", WEIGHT, origin),
        quant_enable=read_value(value["quant_enable"], QUANT_ENABLE, origin.at("quant_enable")),
        dmq_balancer_param=strength,
    )


def _group(layer: Mapping[str, Any], name: str, group: Group, origin: Origin) -> dict[str, Setting]:
    return read_group(layer.get(name, {}), group.parameters, origin.at(name))


def write_config(config: QuantConfig, path: str | os.PathLike[str]) -> None:
    """Write a configuration as JSON, in the vendor's order of keys and formatting.

    Layers come in the order of their names. An existing file is replaced in one step.

    Args:
        config: the configuration.
        path: the file; its folder exists.

    Raises:
        OutputWriteError: the file cannot be written.
    """
    write_text(Path(path), json.dumps(_content(config), indent=4, separators=(",", ":")))


def _content(config: QuantConfig) -> dict[str, Any]:
    content: dict[str, Any] = {name: getattr(config, name) for name in GENERAL}
    if config.fakequant_precision_mode == "DEFAULT":
        del content["fakequant_precision_mode"]
    return content | {name: _layer_content(config.layers[name]) for name in sorted(config.layers)}


def _layer_content(layer: LayerConfig) -> dict[str, Any]:
    content: dict[str, Any] = {"quant_enable": layer.quant_enable}
    if layer.dmq_migration_strength is not None:
        content["dmq_balancer_param"] = layer.dmq_migration_strength
    content["activation_quant_params"] = _group_content(layer.activation, ACTIVATION)
    content["weight_quant_params"] = _group_content(layer.weight, WEIGHT)
    return content


def _group_content(settings: ActivationConfig | WeightConfig, group: Group) -> dict[str, Any]:
    names = group.used_by(settings.algorithm)
    return {name: settings.algorithm if name == group.algorithm else getattr(settings, name) for name in names}
