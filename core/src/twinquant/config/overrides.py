"""Settings given in the call itself, as a mapping."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from twinquant.config.parameters import (
    ACTIVATION,
    DMQ_BALANCER_PARAM,
    GENERAL,
    QUANT_ENABLE,
    WEIGHT,
    Group,
    Parameter,
    read_value,
)
from twinquant.config.settings import Definition, LayerSettings, NamedSettings, Origin, Scope, Setting, suggestion

__all__ = ["read_overrides"]

_ACTIVATION = {"activation_algorithm": "act_algo", "activation_bits": "num_bits"}
_WEIGHT = {"weight_algorithm": "wts_algo", "weight_bits": "num_bits"}
_GENERAL = {name: parameter for name, parameter in GENERAL.items() if name != "version"}
_SKIPS = ("skip_layers", "skip_layer_types")


def read_overrides(overrides: Mapping[str, Any], source: str = "the overrides") -> Definition:
    """Read settings that were given in the call.

    Args:
        overrides: by name: `batch_num`, `activation_offset`, `do_fusion`, `skip_fusion_layers`,
            `fakequant_precision_mode`, `skip_layers`, `skip_layer_types`; for every layer that takes it
            `activation_algorithm`, `activation_bits`, `weight_algorithm`, `weight_bits`, `dmq_migration_strength` and
            what the algorithms have, such as `asymmetric` or `num_of_bins`; and `layers`: by layer name such settings
            for single layers, with `quant_enable` besides.
        source: how messages call them.

    Raises:
        ConfigError: a name is unknown, or a value not allowed.
    """
    origin = Origin(source, scope=Scope.MODEL)
    layer_parameters = _layer_parameters()
    _refuse_unknown(overrides, (*_GENERAL, *_SKIPS, "layers", *layer_parameters), origin)
    layers = overrides.get("layers", {})
    if not isinstance(layers, Mapping):
        raise origin.at("layers").error(f"must be settings by layer name, got {layers!r}")
    single = []
    for name, settings in layers.items():
        if not isinstance(name, str):
            raise origin.at("layers").error(f"layers have names, got {name!r}")
        here = origin.at("layers").at(name, Scope.LAYER)
        if not isinstance(settings, Mapping):
            raise here.error(f"must be a mapping of settings, got {settings!r}")
        _refuse_unknown(settings, ("quant_enable", *layer_parameters), here)
        single.append(NamedSettings(Setting(name, here), _layer_settings(settings, here)))
    return Definition(
        general={
            name: read_value(value, _GENERAL[name], origin.at(name))
            for name, value in overrides.items()
            if name in _GENERAL
        },
        skip_layers=_names(overrides, "skip_layers", origin),
        skip_layer_types=_names(overrides, "skip_layer_types", origin),
        common=_layer_settings(overrides, origin),
        layers=tuple(single),
    )


def _layer_parameters() -> dict[str, Parameter]:
    return {
        **_spellings(ACTIVATION, _ACTIVATION),
        **_spellings(WEIGHT, _WEIGHT),
        "dmq_migration_strength": DMQ_BALANCER_PARAM,
    }


def _spellings(group: Group, renamed: Mapping[str, str]) -> dict[str, Parameter]:
    plain = {name: value for name, value in group.parameters.items() if name not in renamed.values()}
    return {**{new: group.parameters[old] for new, old in renamed.items()}, **plain}


def _refuse_unknown(given: Mapping[str, Any], known: tuple[str, ...], origin: Origin) -> None:
    for name in given:
        if name not in known:
            raise origin.at(str(name)).error(f"unknown setting; {suggestion(str(name), known)}")


def _names(overrides: Mapping[str, Any], field: str, origin: Origin) -> tuple[Setting, ...]:
    names = read_value(overrides.get(field, ()), GENERAL["skip_fusion_layers"], origin.at(field))
    return tuple(Setting(name, origin.at(field)) for name in names.value)


def _layer_settings(given: Mapping[str, Any], origin: Origin) -> LayerSettings:
    enable = strength = None
    if "quant_enable" in given:
        enable = read_value(given["quant_enable"], QUANT_ENABLE, origin.at("quant_enable"))
    if "dmq_migration_strength" in given:
        here = origin.at("dmq_migration_strength")
        strength = read_value(given["dmq_migration_strength"], DMQ_BALANCER_PARAM, here)
    return LayerSettings(
        _group(given, ACTIVATION, _ACTIVATION, origin), _group(given, WEIGHT, _WEIGHT, origin), enable, strength
    )


def _group(given: Mapping[str, Any], group: Group, renamed: Mapping[str, str], origin: Origin) -> dict[str, Setting]:
    parameters = _spellings(group, renamed)
    return {
        renamed.get(name, name): read_value(value, parameters[name], origin.at(name))
        for name, value in given.items()
        if name in parameters
    }
