"""`twinquant demo`: a real network, quantized and measured."""

from __future__ import annotations

import argparse

from twinquant.cli.console import Console
from twinquant.errors import CapabilityError, NoFrameworkError
from twinquant.registry import Capability, Framework, installed_registry, select_framework

__all__ = ["run"]


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Run the demo of every plugin that has one, or of the named plugin; each has a folder of its own."""
    demonstrators = _demonstrators(arguments.framework)
    impossible: dict[str, CapabilityError] = {}
    for framework in demonstrators:
        try:
            header, *rows = framework.demo(arguments.folder / framework.name)
        except CapabilityError as error:  # something that only this plugin needs is not installed
            impossible[framework.name] = error
            continue
        console.line(f"{framework.name} demo\n")
        console.table(header, rows)
        console.line("")
    if len(impossible) == len(demonstrators):
        raise next(iter(impossible.values()))
    for name, reason in impossible.items():
        console.line(f"{name} demo: left out, {reason}")
    console.line(f"the files are in {arguments.folder}")
    return 0


def _demonstrators(name: str | None) -> list[Framework]:
    if name is not None:
        return [select_framework(None, name)]
    registry = installed_registry()
    found = [framework for framework in registry.frameworks.values() if Capability.DEMO in framework.capabilities]
    if not found:
        known = "; ".join(f"{state.name}: {state.reason}" for state in registry.states if state.reason)
        raise NoFrameworkError(
            f'no working plugin has a demo ({known}); the onnx one has: pip install "twinquant[onnx]"'
        )
    return found
