"""The two hooks of a TwinQuant plugin. Everything else is a typed object behind the first one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from twinquant.outputs.artifact import DualOutput
    from twinquant.plan import QuantPlan
    from twinquant.registry.framework import Framework

__all__ = ["ENTRY_POINT_GROUP", "PLUGIN_API", "hookimpl", "hookspec"]

ENTRY_POINT_GROUP = "twinquant.frameworks"
"""Entry point group under which a distribution names its plugin module."""

PLUGIN_API = 1
"""Version of the contract. A plugin module holds the version it was written for as a literal of the same name."""

hookspec = pluggy.HookspecMarker("twinquant")
hookimpl = pluggy.HookimplMarker("twinquant")
"""Marks a plugin's hook implementations."""


@hookspec
def twinquant_framework() -> Framework:  # type: ignore[empty-body]  # a hook specification has no body
    """Return the framework that this plugin brings. Called once, at discovery; must not import the framework itself."""


@hookspec
def twinquant_saved(framework: str, plan: QuantPlan, output: DualOutput) -> None:
    """Observe a finished save; optional. All files are in place; an exception is logged, never raised.

    Args:
        framework: name of the framework that wrote the twins.
        plan: what was inserted where.
        output: the files.
    """
