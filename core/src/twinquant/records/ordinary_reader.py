"""The fast reader: record files in the layout that tools write, one statement a line.

Tools write a value a line, so that a large record is mostly long runs of lines that differ in a number only. This
reader finds such a run with one search and converts its numbers at once. It accepts only what protobuf's parser reads
the same way, and leaves any other text, right or wrong, to that parser.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.records.entry import ARRAY_DTYPES, RecordEntry
from twinquant.records.numbers import NotOrdinary, read_number, read_run
from twinquant.records.schema import KEY_FIELD, KV_CACHE_FIELDS, LAYER_FIELDS, FieldSpec, Kind

__all__ = ["read_ordinary"]

_STATEMENT = re.compile(
    rb"""[ \t]*(?:
        ([a-z_]+)[ \t]*(?: :[ \t]*("[^"\\\n]*"|[^\s"'\#{}<>\[\],;:]+) | :?[ \t]*(\{) )
        | (\})
        | (?:\#[^\n]*)?
    )[ \t\r]*(?:\n|\Z)""",
    re.VERBOSE,
)
_BOOLS = {b"true": True, b"false": False}

_Specs = Mapping[bytes, FieldSpec]
_RECORD_SPECS: _Specs = {b"key": KEY_FIELD}
_BLOCK_SPECS: Mapping[bytes, _Specs] = {
    b"value": {spec.name.encode(): spec for spec in LAYER_FIELDS},
    b"kv_cache_value": {spec.name.encode(): spec for spec in KV_CACHE_FIELDS},
}


class _Draft:
    """A record block while it is being read; repeated fields are lists of array pieces."""

    __slots__ = ("blocks", "fields", "line")

    def __init__(self, line: int) -> None:
        self.line = line
        self.fields: dict[str, Any] = {}
        self.blocks: dict[bytes, dict[str, Any]] = {}

    def finish(self) -> RecordEntry:
        value, kv_cache = (_finished(self.blocks.get(name)) for name in (b"value", b"kv_cache_value"))
        return RecordEntry(self.line, self.fields.get("key"), value, kv_cache)


def _finished(fields: dict[str, Any] | None) -> dict[str, Any] | None:
    if fields is None:
        return None
    return {name: _joined(field) if isinstance(field, list) else field for name, field in fields.items()}


def _joined(pieces: list[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


def read_ordinary(data: bytes) -> list[RecordEntry] | None:
    """Read a record file whose layout is ordinary, many times faster than protobuf's parser.

    Ordinary are: one `name: value`, `name {` or `}` a line, with any indentation; lines that are empty or a comment;
    strings in double quotes without escapes; decimal numbers within the range of their field; true and false; line ends
    of both kinds.

    Args:
        data: the text in UTF-8, without `prune_record` blocks.

    Returns:
        One entry for each record block, equal to what protobuf's parser reads; None when the layout is not ordinary,
        whether or not the text is right.
    """
    try:
        return [draft.finish() for draft in _read_drafts(data)]
    except NotOrdinary:
        return None


def _read_drafts(data: bytes) -> list[_Draft]:
    drafts: list[_Draft] = []
    specs: _Specs = {}
    fields: dict[str, Any] = {}
    depth = position = counted = 0
    line = 1
    while position < len(data):
        statement = _STATEMENT.match(data, position)
        if statement is None:
            raise NotOrdinary
        start, position = position, statement.end()
        name, value, opened, closed = statement.groups()
        if value is not None:
            spec = specs.get(name)
            if spec is None:
                raise NotOrdinary
            if spec.repeated:
                prefix = data[start : statement.start(2)]
                position = _end_of_run(data, prefix, position)
                pieces = fields.setdefault(spec.name, [])
                if position == statement.end():
                    pieces.append(np.array([read_number(value, spec.kind)], ARRAY_DTYPES[spec.kind]))
                else:
                    pieces.extend(read_run(data[start:position], prefix, spec.kind))
            else:
                fields[spec.name] = _scalar(value, spec.kind)
        elif opened and depth == 0 and name == b"record":
            line += data.count(b"\n", counted, start)
            counted = start
            drafts.append(_Draft(line))
            specs, fields, depth = _RECORD_SPECS, drafts[-1].fields, 1
        elif opened and depth == 1 and name in _BLOCK_SPECS:
            specs, fields, depth = _BLOCK_SPECS[name], drafts[-1].blocks.setdefault(name, {}), 2
        elif closed and depth == 2:
            specs, fields, depth = _RECORD_SPECS, drafts[-1].fields, 1
        elif closed and depth == 1:
            specs, depth = {}, 0
        elif opened or closed:
            raise NotOrdinary
    if depth:
        raise NotOrdinary
    return drafts


def _end_of_run(data: bytes, prefix: bytes, line_end: int) -> int:
    """Find where the lines that begin with `prefix` end, from a line end on."""
    if not data.startswith(prefix, line_end):
        return line_end
    other_line = re.compile(rb"\n(?!" + re.escape(prefix) + rb")").search(data, line_end)
    return other_line.end() if other_line else len(data)


def _scalar(text: bytes, kind: Kind) -> str | bool | float | int:
    if kind is Kind.STRING and text.startswith(b'"'):
        return text[1:-1].decode()
    if kind is Kind.BOOL and text in _BOOLS:
        return _BOOLS[text]
    if kind is Kind.STRING or kind is Kind.BOOL:
        raise NotOrdinary
    return read_number(text, kind)
