"""From whatever the user gave as configuration to the one that calibration follows."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from twinquant.config import QuantConfig, create_config, read_config
from twinquant.errors import ArgumentError, ConfigError
from twinquant.plan import LayerInfo

__all__ = ["ConfigLike", "resolve_config"]

ConfigLike = str | os.PathLike[str] | Mapping[str, Any] | QuantConfig | None

_BATCH_NUM = 32


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
    if batch_num is not None and batch_num < 1:
        raise ArgumentError(f"batch_num: must be above 0, got {batch_num}")
    found = _read(config, layers)
    return found if batch_num is None else replace(found, batch_num=batch_num)


def _read(config: ConfigLike, layers: Sequence[LayerInfo]) -> QuantConfig:
    if isinstance(config, QuantConfig):
        return config
    if config is None or isinstance(config, Mapping):
        return create_config(layers, overrides=config, batch_num=_BATCH_NUM)
    if not isinstance(config, (str, os.PathLike)):
        raise ArgumentError(
            f"config: must be a path, a dict of overrides or a QuantConfig, got {type(config).__name__}"
        )
    path = Path(config)
    try:
        with path.open("rb") as file:
            is_json = file.read(4096).lstrip()[:1] == b"{"
    except OSError as error:
        raise ConfigError(f"the configuration {str(path)!r} cannot be read: {error.strerror or error}") from error
    return read_config(path, layers) if is_json else create_config(layers, definition=path, batch_num=_BATCH_NUM)
