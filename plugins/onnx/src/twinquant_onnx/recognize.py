"""Telling ONNX models from other sources, without importing onnx."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO

from twinquant.registry.framework import Match
from twinquant.wire import LENGTH_DELIMITED, VARINT, read_varint

__all__ = ["is_instance_of", "recognize"]

_TYPES = (("onnx", "ModelProto"), ("onnx_ir", "Model"))

_IR_VERSION, _GRAPH = 1, 7
_MODEL_FIELDS = {
    **dict.fromkeys((2, 3, 4, 6, _GRAPH, 8, 14, 20, 25, 26), LENGTH_DELIMITED),
    **dict.fromkeys((_IR_VERSION, 5), VARINT),
}
"""The fields of ModelProto and their wire types."""

_GRAPH_TAGS = frozenset(number << 3 | LENGTH_DELIMITED for number in (1, 2, 5, 10, 11, 12, 13, 14, 15, 16))
"""What the fields of GraphProto start with."""

_LONGEST_HEADER = 20
_MOST_FIELDS = 1000


def recognize(source: Any) -> Match:
    """Say how strongly a source looks like an ONNX model. Never raises; a file is only looked into, not read.

    Args:
        source: what the user passed as the graph.
    """
    if isinstance(source, (str, os.PathLike)):
        path = Path(os.fsdecode(source))
        if _looks_like_model(path):
            return Match.CONTENT
        return Match.NAME if path.suffix.lower() == ".onnx" else Match.NO
    return Match.TYPE if any(is_instance_of(source, *known) for known in _TYPES) else Match.NO


def is_instance_of(source: object, package: str, name: str) -> bool:
    """Tell whether an object is of a class, given by top-level package and name: the package need not be installed."""
    return any(
        kind.__name__ == name and str(kind.__module__).partition(".")[0] == package for kind in type(source).__mro__
    )


def _looks_like_model(path: Path) -> bool:
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return _starts_like_model(file)
    except (OSError, ValueError):
        # Also a name that no file can have, and a file that is no protobuf message (WireError is a ValueError).
        return False


def _starts_like_model(file: BinaryIO) -> bool:
    """Tell whether a file starts with ir_version and known fields of ModelProto, up to a graph.

    Other protobuf messages that users have at hand start differently: a caffemodel with a string, a SavedModel
    without field 7.
    """
    position = 0
    for index in range(_MOST_FIELDS):
        file.seek(position)
        head = file.read(_LONGEST_HEADER + 1)
        tag, body = read_varint(head, 0, len(head))
        number, wire_type = tag >> 3, tag & 7
        if _MODEL_FIELDS.get(number) != wire_type or (index == 0) != (number == _IR_VERSION):
            return False
        value, stop = read_varint(head, body, len(head))
        if number == _GRAPH:
            return value == 0 or read_varint(head, stop, len(head))[0] in _GRAPH_TAGS
        position += stop + (value if wire_type == LENGTH_DELIMITED else 0)
    return False
