"""Opening the model that a command was given."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from twinquant.outputs import recover
from twinquant.registry import Framework, select_framework

__all__ = ["OpenModel", "open_model"]


class OpenModel(NamedTuple):
    """A model file and its reader."""

    framework: Framework
    path: Path


def open_model(path: str, framework: str | None) -> OpenModel:
    """Complete what an interrupted save left beside the model, and choose who reads it."""
    recover(Path(path).parent)
    return OpenModel(select_framework(path, framework), Path(path))
