"""`twinquant plugins`: which frameworks work here, and what to do about the others."""

from __future__ import annotations

import argparse

from twinquant.cli.console import Console
from twinquant.registry import PluginState, plugin_states

__all__ = ["run"]


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Print one row per plugin that is installed or known of."""
    del arguments
    console.table(("plugin", "state", "distribution", "what to do"), map(_row, plugin_states()))
    return 0


def _row(plugin: PluginState) -> tuple[str, ...]:
    distribution = f"{plugin.distribution} {plugin.version}".strip()
    advice = f"{plugin.reason}; run: {plugin.install}" if plugin.install else plugin.reason
    return plugin.name, plugin.state.value, distribution, advice
