"""From whatever the user gave as configuration to the one that calibration follows."""

from __future__ import annotations

import codecs
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral
from pathlib import Path
from typing import Any

from twinquant.config import LayerConfig, QuantConfig, check_config, create_config, read_config
from twinquant.errors import ArgumentError, ConfigError
from twinquant.plan import LayerInfo
from twinquant.plan.rules import FRAMEWORK_RULES, FrameworkRules
from twinquant.registry import Framework

__all__ = ["ConfigLike", "check_supported", "resolve_config", "trained_layers"]

ConfigLike = str | os.PathLike[str] | Mapping[str, Any] | QuantConfig | None

_BATCH_NUM = 32
_IS_JSON = {".json": True, ".cfg": False}


def resolve_config(config: ConfigLike, layers: Sequence[LayerInfo], batch_num: int | None) -> QuantConfig:
    """Return the configuration of a model.

    Args:
        config: the path of a JSON file or of a simplified configuration (.cfg), overrides of the defaults by name, or a
            finished configuration; None means the defaults.
        layers: every node of the model, in graph order.
        batch_num: how many batches; None: what the configuration says, or 32 where it says nothing.

    Raises:
        ArgumentError: `batch_num` is below 1, or `config` is nothing of this.
        ConfigError: the configuration is wrong, or does not fit the model.
    """
    if batch_num is not None and (not _is_whole(batch_num) or batch_num < 1):
        raise ArgumentError(f"batch_num: must be a whole number above 0, got {batch_num!r}")
    found = _read(config, layers)
    return found if batch_num is None else replace(found, batch_num=int(batch_num))


def trained_layers(framework: Framework, config: QuantConfig) -> dict[str, LayerConfig]:
    """Return the layers whose weights are rounded by training.

    Raises:
        ConfigError: the framework cannot find weights in the configured way.
    """
    enabled = {name: layer for name, layer in config.layers.items() if layer.quant_enable}
    for name, layer in enabled.items():
        if layer.weight.algorithm not in framework.weight_algorithms:
            raise ConfigError(
                f"layer {name!r}: {layer.weight.algorithm} trains the rounding of weights, which the {framework.name} "
                "plugin does not; use arq_quantize",
                path=f"$.{name}.weight_quant_params.wts_algo",
            )
    return {name: layer for name, layer in enabled.items() if layer.weight.algorithm == "ada_quantize"}


def check_supported(config: QuantConfig, framework: str) -> None:
    """Refuse settings that no record of a framework can hold.

    Args:
        config: the configuration of a model.
        framework: the name of the model's framework.

    Raises:
        ConfigError: there is such a setting; `path` names it.
    """
    if not FRAMEWORK_RULES.get(framework, FrameworkRules()).only_int8:
        return
    for name, layer in config.layers.items():
        if not layer.quant_enable:
            continue
        for part, settings in (("activation", layer.activation), ("weight", layer.weight)):
            if settings.num_bits != 8:
                path = f"$.{name}.{part}_quant_params.num_bits"
                raise ConfigError(f"{path}: {framework} models take 8 bits only, got {settings.num_bits}", path=path)
        if layer.dmq_migration_strength is not None:
            path = f"$.{name}.dmq_balancer_param"
            raise ConfigError(f"{path}: {framework} models cannot be balanced; remove it", path=path)
    if config.fakequant_precision_mode != "DEFAULT":
        path = "$.fakequant_precision_mode"
        mode = config.fakequant_precision_mode
        raise ConfigError(f"{path}: {framework} models take 'DEFAULT' only, got {mode!r}", path=path)


def _is_whole(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral)


def _read(config: ConfigLike, layers: Sequence[LayerInfo]) -> QuantConfig:
    if isinstance(config, QuantConfig):
        return check_config(config, layers, tell_of_refused=True)
    if config is None or isinstance(config, Mapping):
        return create_config(layers, overrides=config, batch_num=_BATCH_NUM, tell_of_refused=True)
    if not isinstance(config, (str, os.PathLike)):
        raise ArgumentError(
            f"config: must be a path, a dict of overrides or a QuantConfig, got {type(config).__name__}"
        )
    path = Path(config)
    if _is_json(path):
        return read_config(path, layers, batch_num=_BATCH_NUM, tell_of_refused=True)
    return create_config(layers, definition=path, batch_num=_BATCH_NUM, tell_of_refused=True)


def _is_json(path: Path) -> bool:
    """Tell by a file's name what it is, and by its content where the name says nothing.

    Raises:
        ConfigError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            start = file.read(4096).removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    except OSError as error:
        raise ConfigError(f"the configuration {str(path)!r} cannot be read: {error.strerror or error}") from error
    return _IS_JSON.get(path.suffix.lower(), start in (b"{", b"["))
