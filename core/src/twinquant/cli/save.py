"""`twinquant save`: write the twins."""

from __future__ import annotations

import argparse

import twinquant
from twinquant.cli.console import Console
from twinquant.cli.numbers import count
from twinquant.cli.progress import show_progress

__all__ = ["run"]


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Save, and list the files."""
    with show_progress(console) as progress:
        output = twinquant.save_model(
            arguments.model,
            arguments.record,
            arguments.save_path,
            save_type=arguments.save_type,
            framework=arguments.framework,
            progress=progress,
            **dict(arguments.option),
        )
    nodes = len(output.plan.layers) + len(output.plan.skipped)
    console.line(f"{len(output.plan.layers)} of {count(nodes, 'node')} quantized")
    files = [(artifact.flavor.value, path) for artifact in output.artifacts for path in artifact.files]
    for what, path in files + [("both twins", path) for path in output.sidecars]:
        console.line(f"{what:<10}  {path}")
    return 0
