"""Telling Caffe nets from other sources, by looking at names and at the head of a prototxt."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from twinquant.registry.framework import Match
from twinquant_caffe.sources import PROTOTXT, SUFFIXES, source_files

__all__ = ["recognize"]

_PACKAGES = frozenset({"caffe", "twinquant_caffe"})
_HEAD_BYTES = 16 * 1024
_NET_HEAD = re.compile(rb"(?:^|[\s}])(?:layers?\s*\{|input\s*:)")


def recognize(source: Any) -> Match:
    """Claim nets of pycaffe and of this package by type, a prototxt that holds layers by content, file names by name.

    A pair is a tuple of two paths, or one text with a comma between them. Never raises.
    """
    if any(base.__module__.partition(".")[0] in _PACKAGES for base in type(source).__mro__):
        return Match.TYPE
    files = source_files(source)
    if not files or not all(file.suffix.lower() in SUFFIXES for file in files):
        return Match.NO
    return Match.CONTENT if any(_holds_layers(file) for file in files) else Match.NAME


def _holds_layers(file: Path) -> bool:
    """Look for a layer or an input in the head of a prototxt."""
    if file.suffix.lower() != PROTOTXT:
        return False
    try:
        with file.open("rb") as stream:
            return _NET_HEAD.search(stream.read(_HEAD_BYTES)) is not None
    except (OSError, ValueError):  # ValueError: the path holds a null byte
        return False
