"""What `quantize` and `calibrate` share: the arguments of the library call behind both."""

from __future__ import annotations

import argparse
from typing import Any

from twinquant.data import DataOptions

__all__ = ["calibration_arguments"]


def calibration_arguments(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments that both calls take."""
    return {
        "config": arguments.config,
        "batch_num": arguments.batches,
        "options": DataOptions(
            batch_size=arguments.batch_size,
            mean=arguments.mean,
            std=arguments.std,
            layout=arguments.layout,
            size=arguments.size,
            channel_order=arguments.channel_order,
            skip_broken=arguments.skip_broken,
        ),
        "framework": arguments.framework,
        "workers": arguments.workers,
        "resume": not arguments.no_resume,
        "allow_constant": arguments.allow_constant,
    }
