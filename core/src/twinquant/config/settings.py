"""Settings as the user gave them, before they meet the layers of a model: each knows where it comes from."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from enum import IntEnum
from typing import Any

from twinquant.errors import ConfigError

__all__ = ["Definition", "LayerSettings", "NamedSettings", "Origin", "Scope", "Setting", "member", "suggestion"]

_PLAIN_NAME = re.compile(r"[A-Za-z_][\w-]*")


class Scope(IntEnum):
    """Whom a setting is meant for: the narrower, the less it may be adapted to a layer that it does not fit."""

    MODEL = 0
    TYPE = 1
    LAYER = 2


@dataclass(frozen=True, slots=True)
class Origin:
    """A place in a configuration.

    Attributes:
        source: how messages call the configuration: a file's name, or "the overrides".
        path: the place, such as `$.conv1.activation_quant_params.num_bits`; `$` is the whole.
        scope: whom the settings of this place are meant for.
    """

    source: str
    path: str = "$"
    scope: Scope = Scope.LAYER

    def at(self, name: str, scope: Scope | None = None) -> Origin:
        """Return the place of a member."""
        return Origin(self.source, member(self.path, name), self.scope if scope is None else scope)

    def error(self, problem: str) -> ConfigError:
        """Return an error about this place."""
        return ConfigError(f"{self.source}, {self.path}: {problem}", path=self.path)


@dataclass(frozen=True, slots=True)
class Setting:
    """A value and the place it comes from."""

    value: Any
    origin: Origin

    def error(self, problem: str) -> ConfigError:
        """Return an error about this setting."""
        return self.origin.error(problem)


@dataclass(frozen=True, slots=True)
class LayerSettings:
    """What a configuration says about a layer, or about all layers of a group.

    Attributes:
        activation: settings of the activation, by their names in JSON.
        weight: the same for the weight.
        quant_enable: whether the layer is quantized; None: not said.
        dmq_balancer_param: the migration strength; None: not said.
    """

    activation: Mapping[str, Setting] = field(default_factory=dict)
    weight: Mapping[str, Setting] = field(default_factory=dict)
    quant_enable: Setting | None = None
    dmq_balancer_param: Setting | None = None


@dataclass(frozen=True, slots=True)
class NamedSettings:
    """What a configuration says about one layer or one type of layers.

    Attributes:
        name: the layer or the type.
        settings: what is said about it.
    """

    name: Setting
    settings: LayerSettings


@dataclass(frozen=True, slots=True)
class Definition:
    """One configuration as it was read: every value is checked by itself, none against a model.

    Attributes:
        general: settings of the whole model, by their names in JSON.
        skip_layers: layers that are not quantized.
        skip_layer_types: types of layers that are not quantized.
        common: what holds for every layer.
        types: what holds for types of layers instead.
        layers: what holds for single layers instead.
    """

    general: Mapping[str, Setting] = field(default_factory=dict)
    skip_layers: tuple[Setting, ...] = ()
    skip_layer_types: tuple[Setting, ...] = ()
    common: LayerSettings = LayerSettings()
    types: tuple[NamedSettings, ...] = ()
    layers: tuple[NamedSettings, ...] = ()


def member(path: str, name: str) -> str:
    """Return the path of a member: `$.conv1`, or `$["/block/conv 1"]` where the name is no plain word."""
    return f"{path}.{name}" if _PLAIN_NAME.fullmatch(name) else f"{path}[{json.dumps(name, ensure_ascii=False)}]"


def suggestion(name: str, known: Collection[str]) -> str:
    """Return what a message about an unknown name ends with: similar names, or all of them if they are few."""
    if close := get_close_matches(name, known, n=3):
        return f"did you mean {' or '.join(map(repr, close))}?"
    if len(known) <= 20:
        return f"known are: {', '.join(known) or 'none'}"
    return f"none of the {len(known)} known names is similar"
