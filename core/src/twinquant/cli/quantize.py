"""`twinquant quantize`: calibrate, and write the twins."""

from __future__ import annotations

import argparse

import twinquant
from twinquant.cli.calibration import calibration_arguments
from twinquant.cli.console import Console
from twinquant.cli.numbers import count
from twinquant.cli.progress import show_progress

__all__ = ["run"]


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Quantize, and list the files."""
    with show_progress(console) as progress:
        result = twinquant.quantize(
            arguments.model,
            arguments.data,
            arguments.save_path,
            save_type=arguments.save_type,
            progress=progress,
            **dict(arguments.option),
            **calibration_arguments(arguments),
        )
    output, manifest = result.output, result.manifest
    nodes = len(output.plan.layers) + len(output.plan.skipped)
    folded = f"; {count(len(manifest.folded_layers), 'layer')} had others folded in" if manifest.folded_layers else ""
    console.line(f"{len(output.plan.layers)} of {count(nodes, 'node')} quantized{folded}")
    files = [(artifact.flavor.value, path) for artifact in output.artifacts for path in artifact.files]
    for what, path in files + [("both twins", path) for path in output.sidecars]:
        console.line(f"{what:<10}  {path}")
    return 0
