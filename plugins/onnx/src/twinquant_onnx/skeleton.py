"""The bytes of an .onnx file without its big tensors, which stay in the file and are only referred to."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from twinquant.wire import LENGTH_DELIMITED, VARINT, WireError, fields, header, read_varint
from twinquant_onnx.graph import TensorStore
from twinquant_onnx.tensors import FileRange
from twinquant_onnx.traversal import HOLDERS

__all__ = ["MINIMUM_STORED_BYTES", "RAW_LAYOUT_FIELDS", "build_skeleton"]

MINIMUM_STORED_BYTES = 4096
"""Smaller tensors stay in the message."""

RAW_LAYOUT_FIELDS: dict[int, str] = {onnx.TensorProto.FLOAT: "float_data", onnx.TensorProto.DOUBLE: "double_data"}
"""Typed fields by element type whose packed encoding equals raw_data, byte for byte."""

_DEEPEST_NESTING = 100
"""Protobuf itself refuses messages that are nested deeper."""

Buffer = bytes | mmap.mmap

Segment = tuple[int, int]


@dataclass(frozen=True, slots=True)
class _Child:
    """A field that leads to tensors: the message it holds, and whether it may occur more than once."""

    message: str
    repeated: bool


def _is_repeated(field: Any) -> bool:
    # protobuf 5 has no is_repeated; later versions warn about the label.
    known: bool | None = getattr(field, "is_repeated", None)
    return known if known is not None else bool(field.label == field.LABEL_REPEATED)


def _children(message: str) -> dict[int, _Child]:
    by_name = getattr(onnx, message).DESCRIPTOR.fields_by_name
    known = [by_name[name] for name in HOLDERS[message] if name in by_name]
    return {field.number: _Child(field.message_type.name, _is_repeated(field)) for field in known}


_CHILDREN = {message: _children(message) for message in HOLDERS}
_TENSOR = {name: field.number for name, field in onnx.TensorProto.DESCRIPTOR.fields_by_name.items()}
_RAW = _TENSOR["raw_data"]
_TYPED: dict[int, int] = {data_type: _TENSOR[name] for data_type, name in RAW_LAYOUT_FIELDS.items()}
_REPLACED = frozenset(
    number for name, number in _TENSOR.items() if name.endswith("_data") and name != "string_data"
) | {_TENSOR["data_location"]}
"""What a reference to the store replaces: every kind of data, and where it is."""


def build_skeleton(data: Buffer, path: Path) -> tuple[bytes, TensorStore]:
    """Return a serialized ModelProto without its big tensors, and the store that has them.

    The fields keep their order; a field that may occur only once, but occurs in several pieces, is put together.

    Args:
        data: the serialized ModelProto; only the headers of its fields are touched, and what is returned.
        path: the file that `data` is the content of: the store reads from there.

    Raises:
        WireError: the data is no protobuf message, or truncated.
    """
    scan = _Scan(data, path, TensorStore())
    return b"".join(scan.message("ModelProto", [(0, len(data))], 0)), scan.store


@dataclass(frozen=True, slots=True)
class _Scan:
    """One pass over a file. A message is a list of segments: the serialization of one message may come in pieces."""

    data: Buffer
    path: Path
    store: TensorStore

    def message(self, name: str, segments: list[Segment], depth: int) -> list[bytes]:
        """Return the pieces of a message, big tensors replaced."""
        if name == "TensorProto":
            return self.tensor(segments)
        if depth > _DEEPEST_NESTING:
            raise WireError(f"messages are nested more than {_DEEPEST_NESTING} deep")
        children = _CHILDREN[name]
        single: dict[int, list[Segment]] = {}
        pieces: list[bytes] = []
        for start, end in segments:
            copied = start
            for number, wire_type, tag, body, stop in fields(self.data, start, end):
                child = children.get(number)
                if child is None or wire_type != LENGTH_DELIMITED:
                    continue
                if not child.repeated:
                    single.setdefault(number, []).append((body, stop))
                    pieces.append(self.data[copied:tag])
                    copied = stop
                elif stop - body >= MINIMUM_STORED_BYTES:
                    pieces.append(self.data[copied:tag])
                    pieces += _framed(number, self.message(child.message, [(body, stop)], depth + 1))
                    copied = stop
            pieces.append(self.data[copied:end])
        for number, parts in single.items():
            pieces += _framed(number, self.message(children[number].message, parts, depth + 1))
        return pieces

    def tensor(self, segments: list[Segment]) -> list[bytes]:
        """Return the pieces of a tensor: unchanged, or with a reference to the store in place of its data."""
        found = self._data_of(segments)
        if found is None:
            return [self.data[start:end] for start, end in segments]
        pieces = []
        for start, end in segments:
            for number, _, tag, _, stop in fields(self.data, start, end):
                if number not in _REPLACED:
                    pieces.append(self.data[tag:stop])
        reference = onnx.TensorProto()
        self.store.attach(reference, FileRange(self.path, found[0], found[1] - found[0]))
        return [*pieces, reference.SerializeToString()]

    def _data_of(self, segments: list[Segment]) -> Segment | None:
        """Find the data of a tensor that can be read from the file in one piece and is worth it."""
        data_type = location = 0
        raw: Segment | None = None
        typed: dict[int, list[Segment | None]] = {number: [] for number in _TYPED.values()}
        for start, end in segments:
            for number, wire_type, _, body, stop in fields(self.data, start, end):
                if number == _RAW and wire_type == LENGTH_DELIMITED:
                    raw = body, stop
                elif number in typed:
                    typed[number].append((body, stop) if wire_type == LENGTH_DELIMITED else None)
                elif number == _TENSOR["data_type"] and wire_type == VARINT:
                    data_type, _ = read_varint(self.data, body, stop)
                elif number == _TENSOR["data_location"] and wire_type == VARINT:
                    location, _ = read_varint(self.data, body, stop)
        if location == onnx.TensorProto.EXTERNAL or data_type == onnx.TensorProto.STRING:
            return None
        if raw is None and data_type in _TYPED and len(typed[_TYPED[data_type]]) == 1:
            raw = typed[_TYPED[data_type]][0]
        return raw if raw is not None and raw[1] - raw[0] >= MINIMUM_STORED_BYTES else None


def _framed(number: int, pieces: list[bytes]) -> list[bytes]:
    return [header(number, sum(map(len, pieces))), *pieces]
