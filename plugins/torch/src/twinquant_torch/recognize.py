"""Telling torch models from other sources, without importing torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twinquant.registry.framework import Match
from twinquant_torch.source import TorchModel

__all__ = ["is_torch_type", "recognize"]

_SUFFIXES = frozenset({".pt", ".pth", ".pt2"})
_TYPES = ("Module", "ExportedProgram")


def recognize(source: Any) -> Match:
    """Claim torch's model types by type, and .pt, .pth and .pt2 files by name. Never raises.

    Args:
        source: what the user passed as the graph.
    """
    if isinstance(source, TorchModel) or any(is_torch_type(source, name) for name in _TYPES):
        return Match.TYPE
    if isinstance(source, (str, os.PathLike)) and Path(os.fsdecode(source)).suffix.lower() in _SUFFIXES:
        return Match.NAME
    return Match.NO


def is_torch_type(source: object, name: str) -> bool:
    """Tell whether an object is of one of torch's classes, or of a class derived from it.

    Types are told by the modules of their base classes: whoever holds such an object has imported torch already, and
    nobody else needs to.
    """
    return any(
        base.__name__ == name and str(base.__module__).partition(".")[0] == "torch" for base in type(source).__mro__
    )
