"""The entry point of the Caffe plugin; imports no framework."""

from __future__ import annotations

from twinquant.registry import Framework, hookimpl
from twinquant_caffe.framework import CaffeFramework

__all__ = ["PLUGIN_API", "twinquant_framework"]

PLUGIN_API = 1


@hookimpl
def twinquant_framework() -> Framework:
    """Return the Caffe framework."""
    return CaffeFramework()
