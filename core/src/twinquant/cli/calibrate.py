"""`twinquant calibrate`: measure a model and write its record."""

from __future__ import annotations

import argparse

import twinquant
from twinquant.cli.calibration import calibration_arguments
from twinquant.cli.console import Console
from twinquant.cli.numbers import count
from twinquant.cli.progress import show_progress

__all__ = ["run"]


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Calibrate, and say what was written."""
    with show_progress(console) as progress:
        records = twinquant.calibrate(
            arguments.model,
            arguments.data,
            arguments.record,
            prepared_model=arguments.prepared_model,
            progress=progress,
            **dict(arguments.option),
            **calibration_arguments(arguments),
        )
    console.line(f"{count(len(records), 'layer')} calibrated: {arguments.record}")
    return 0
