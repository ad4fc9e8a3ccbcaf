"""The entry point of the ONNX plugin. Imports no framework."""

from __future__ import annotations

from twinquant.registry import Framework, hookimpl
from twinquant_onnx.framework import OnnxFramework

__all__ = ["PLUGIN_API", "twinquant_framework"]

PLUGIN_API = 1


@hookimpl
def twinquant_framework() -> Framework:
    """Return the ONNX framework."""
    return OnnxFramework()
