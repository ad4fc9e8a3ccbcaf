"""The fast reader: record files in the layout that tools write, one statement a line.

Tools write a value a line, so that a large record is mostly long runs of lines that differ in a number only. This reader
finds such a run with one search and converts its numbers at once. It accepts only what protobuf's parser provably reads the
same way, and leaves any other text, right or wrong, to that parser.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.records.entry import ARRAY_DTYPES, RecordEntry
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
# Not in the alphabet, hence left to protobuf: hexadecimal numbers, a suffix `f`, underscores, blanks between numbers.
_NUMBER_BYTES = b"0123456789.+-eEinfa\n"
# Protobuf reads 010 as 8 or refuses it; Python's int and float read 10.
_LEADING_ZERO = re.compile(rb"\n[+-]?0[0-9]")
# Long runs are converted in pieces: their temporaries stay within a few megabytes.
_PIECE_BYTES = 1 << 18

_MAX_FLOAT32 = float(np.finfo(np.float32).max)
_INTEGER_RANGES = {Kind.INT32: (-(2**31), 2**31 - 1), Kind.UINT32: (0, 2**32 - 1)}
_BOOLS = {b"true": True, b"false": False}

_Specs = Mapping[bytes, FieldSpec]
_RECORD_SPECS: _Specs = {b"key": KEY_FIELD}
_BLOCK_SPECS: Mapping[bytes, _Specs] = {
    b"value": {spec.name.encode(): spec for spec in LAYER_FIELDS},
    b"kv_cache_value": {spec.name.encode(): spec for spec in KV_CACHE_FIELDS},
}


class _NotOrdinary(Exception):  # noqa: N818 - an answer, not an error: the text is left to protobuf's parser
    """The text is not in the layout that this reader knows."""


class _Draft:
    """A record block while it is being read; repeated fields are lists of array pieces."""

    __slots__ = ("blocks", "fields", "line")

    def __init__(self, line: int) -> None:
        self.line = line
        self.fields: dict[str, Any] = {}
        self.blocks: dict[bytes, dict[str, Any]] = {}

    def finish(self) -> RecordEntry:
        value, kv_cache = (_joined(self.blocks.get(name)) for name in (b"value", b"kv_cache_value"))
        return RecordEntry(self.line, self.fields.get("key"), value, kv_cache)


def _joined(fields: dict[str, Any] | None) -> dict[str, Any] | None:
    if fields is None:
        return None
    return {name: np.concatenate(field) if isinstance(field, list) else field for name, field in fields.items()}


def read_ordinary(data: bytes) -> list[RecordEntry] | None:
    """Read a record file whose layout is ordinary, many times faster than protobuf's parser.

    Ordinary are: one `name: value`, `name {` or `}` a line, with any indentation; lines that are empty or a comment; strings
    in double quotes without escapes; decimal numbers, inf and nan; true and false; line ends of both kinds.

    Args:
        data: the text in UTF-8, without `prune_record` blocks.

    Returns:
        One entry for each record block, equal to what protobuf's parser reads; None when the layout is not ordinary, whether
        or not the text is right.
    """
    try:
        return [draft.finish() for draft in _read_drafts(data)]
    except _NotOrdinary:
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
            raise _NotOrdinary
        start, position = position, statement.end()
        name, value, opened, closed = statement.groups()
        if value is not None:
            spec = specs.get(name)
            if spec is None:
                raise _NotOrdinary
            if spec.repeated:
                position = _end_of_run(data, start, statement.start(2))
                fields.setdefault(spec.name, []).extend(_run(data, start, statement.start(2), position, spec.kind))
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
            raise _NotOrdinary
    if depth:
        raise _NotOrdinary
    return drafts


def _end_of_run(data: bytes, start: int, value_start: int) -> int:
    """Find where the lines end that begin like the one at `start`, up to its value."""
    prefix = re.escape(data[start:value_start])
    other_line = re.compile(rb"\n(?!" + prefix + rb")").search(data, value_start)
    return other_line.end() if other_line else len(data)


def _run(data: bytes, start: int, value_start: int, stop: int, kind: Kind) -> Iterator[npt.NDArray[Any]]:
    """Convert the numbers of a run of lines, piece by piece, each of whole lines."""
    prefix = data[start:value_start]
    while start < stop:
        piece_stop = data.find(b"\n", min(start + _PIECE_BYTES, stop) - 1, stop) + 1 or stop
        yield _piece(data[start:piece_stop], prefix, kind)
        start = piece_stop


def _piece(lines: bytes, prefix: bytes, kind: Kind) -> npt.NDArray[Any]:
    first = lines[: lines.find(b"\n") + 1] or lines
    repeats, rest = divmod(len(lines), len(first))
    # Offsets are nearly always lines of zeros, and balance factors lines of ones: one conversion is enough.
    if rest == 0 and first * repeats == lines:
        return np.repeat(_piece_numbers(first, prefix, kind), repeats)
    return _piece_numbers(lines, prefix, kind)


def _piece_numbers(lines: bytes, prefix: bytes, kind: Kind) -> npt.NDArray[Any]:
    # A second prefix within a line would be a second statement, and without it two numbers would read as one.
    if lines.count(prefix) != _count_lines(lines):
        raise _NotOrdinary
    return _numbers(lines.replace(prefix, b""), kind)


def _numbers(text: bytes, kind: Kind) -> npt.NDArray[Any]:
    """Convert lines of one number each."""
    text = text.replace(b"\r\n", b"\n")
    if text.translate(None, _NUMBER_BYTES) or _LEADING_ZERO.search(b"\n" + text):
        raise _NotOrdinary
    tokens = text.split()
    # The alphabet has no blank, so a line holds one token at most, and as many tokens as lines means one on each.
    if len(tokens) != _count_lines(text):
        raise _NotOrdinary
    return _convert(tokens, kind)


def _count_lines(text: bytes) -> int:
    return text.count(b"\n") + (not text.endswith(b"\n"))


def _convert(tokens: list[bytes], kind: Kind) -> npt.NDArray[Any]:
    try:
        values = np.array(list(map(float if kind is Kind.FLOAT else int, tokens)))
    except ValueError:
        raise _NotOrdinary from None
    if kind is Kind.FLOAT:
        # Protobuf's implementations differ in what they round to infinity.
        if np.any(np.isfinite(values) & (np.abs(values) > _MAX_FLOAT32)):
            raise _NotOrdinary
    else:
        low, high = _INTEGER_RANGES[kind]
        if values.min() < low or values.max() > high:
            raise _NotOrdinary
    return values.astype(ARRAY_DTYPES[kind])


def _scalar(token: bytes, kind: Kind) -> str | bool | float | int:
    if kind is Kind.STRING:
        if not token.startswith(b'"'):
            raise _NotOrdinary
        return token[1:-1].decode()
    if kind is Kind.BOOL:
        if token not in _BOOLS:
            raise _NotOrdinary
        return _BOOLS[token]
    value: float | int = _numbers(token, kind).item()
    return value
