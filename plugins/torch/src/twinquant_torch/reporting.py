"""Telling which layers stay in float, and why."""

from __future__ import annotations

import logging
from collections.abc import Iterable

from twinquant.plan import LayerInfo

__all__ = ["left_out", "warn_of_left_out"]

_logger = logging.getLogger(__name__)


def left_out(layers: Iterable[LayerInfo]) -> dict[str, str]:
    """Return the reasons of the layers that are of a kind that is quantized, and yet cannot be, by their names."""
    return {layer.name: layer.refusal for layer in layers if layer.kind is not None and layer.refusal is not None}


def warn_of_left_out(layers: Iterable[LayerInfo]) -> None:
    """Log a warning for each layer that cannot be quantized."""
    for name, reason in left_out(layers).items():
        _logger.warning("the layer %r stays in float: %s", name, reason)
