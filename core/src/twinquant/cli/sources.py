"""The arguments that several commands have: a model, and the framework that reads it."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NamedTuple

from twinquant.outputs import recover
from twinquant.registry import Framework, select_framework

__all__ = ["OpenModel", "add_framework_option", "open_model"]


class OpenModel(NamedTuple):
    """A model file and its reader."""

    framework: Framework
    path: Path


def add_framework_option(parser: argparse.ArgumentParser) -> None:
    """Add `--framework NAME`."""
    parser.add_argument("--framework", metavar="NAME", help="which plugin reads the model (default: the best claim)")


def open_model(path: str, framework: str | None) -> OpenModel:
    """Complete what an interrupted save left beside the model, and choose who reads it."""
    recover(Path(path).parent)
    return OpenModel(select_framework(path, framework), Path(path))
