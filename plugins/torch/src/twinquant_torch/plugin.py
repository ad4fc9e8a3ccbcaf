"""The entry point of the torch plugin; imports no framework."""

from __future__ import annotations

from twinquant.registry import Framework, hookimpl
from twinquant_torch.framework import TorchFramework

__all__ = ["PLUGIN_API", "twinquant_framework"]

PLUGIN_API = 1


@hookimpl
def twinquant_framework() -> Framework:
    """Return the torch framework."""
    return TorchFramework()
