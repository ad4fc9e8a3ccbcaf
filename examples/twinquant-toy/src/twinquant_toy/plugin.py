"""The entry point of the toy plugin; imports no framework."""

from __future__ import annotations

from twinquant.registry import Framework, hookimpl
from twinquant_toy.framework import ToyFramework

PLUGIN_API = 1


@hookimpl
def twinquant_framework() -> Framework:
    """Return the toy framework."""
    return ToyFramework()
