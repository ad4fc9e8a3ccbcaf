"""Numbers as the fast reader takes them: a single one, or a run of lines with one each.

What is accepted here reads the same in protobuf's parser; everything else raises `NotOrdinary`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.records.decimals import parse_plain_decimals
from twinquant.records.entry import ARRAY_DTYPES
from twinquant.records.schema import Kind

__all__ = ["NotOrdinary", "read_number", "read_run"]

# Hexadecimal and octal numbers, underscores, a suffix `f`, inf and nan are left to protobuf.
_FLOAT = re.compile(rb"-?(?:0|[1-9][0-9]*)(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?")
_INTEGER = re.compile(rb"-?(?:0|[1-9][0-9]*)")
_NUMBER_BYTES = b"0123456789.+-eE\n"
# Protobuf reads 010 as 8 or refuses it; Python's int and float read 10.
_LEADING_ZERO = re.compile(rb"\n[+-]?0[0-9]")
_MAX_FLOAT32 = float(np.finfo(np.float32).max)
# Protobuf refuses integers outside; what floats it rounds to infinity differs between its implementations.
_RANGES = {Kind.FLOAT: (-_MAX_FLOAT32, _MAX_FLOAT32), Kind.INT32: (-(2**31), 2**31 - 1), Kind.UINT32: (0, 2**32 - 1)}

# Long runs are converted in pieces: their temporaries stay within a few megabytes and in the cache.
_PIECE_BYTES = 1 << 18
# Shorter pieces are converted one number after the other, because a call into NumPy costs as much as several numbers.
_ARRAY_BYTES = 1 << 13


class NotOrdinary(Exception):  # noqa: N818 - an answer, not an error: the text is left to protobuf's parser
    """The text is not in the layout that the fast reader knows."""


def read_number(text: bytes, kind: Kind) -> float | int:
    """Convert one number; a float is rounded to float32.

    Raises:
        NotOrdinary: protobuf's parser has to read it.
    """
    pattern, convert = (_FLOAT, float) if kind is Kind.FLOAT else (_INTEGER, int)
    if pattern.fullmatch(text) is None:
        raise NotOrdinary
    value = convert(text)
    low, high = _RANGES[kind]
    if not low <= value <= high:
        raise NotOrdinary
    return float(np.float32(value)) if kind is Kind.FLOAT else value


def read_run(lines: bytes, prefix: bytes, kind: Kind) -> Iterator[npt.NDArray[Any]]:
    """Convert the numbers of lines that differ in their number only.

    Args:
        lines: whole lines, each of which begins with `prefix`.
        prefix: what precedes the number on each line.
        kind: the type of the numbers.

    Yields:
        Arrays of the dtype for `kind`: the numbers of all lines, in order, in pieces.

    Raises:
        NotOrdinary: protobuf's parser has to read them.
    """
    lines = lines.replace(b"\r\n", b"\n")
    start = 0
    while start < len(lines):
        stop = lines.find(b"\n", start + _PIECE_BYTES) + 1 or len(lines)
        yield _read_piece(lines[start:stop], prefix, kind)
        start = stop


def _read_piece(lines: bytes, prefix: bytes, kind: Kind) -> npt.NDArray[Any]:
    first = lines[: lines.find(b"\n") + 1] or lines
    repeats, rest = divmod(len(lines), len(first))
    # Offsets are nearly always lines of zeros, and balance factors often lines of ones: one conversion is enough.
    if repeats > 1 and rest == 0 and first * repeats == lines:
        return np.repeat(_read_piece(first, prefix, kind), repeats)
    if kind is Kind.FLOAT and len(lines) > _ARRAY_BYTES and lines.endswith(b"\n"):
        return _read_many_floats(lines, len(prefix))
    # A second prefix within a line is a second statement; without it two numbers would read as one.
    if lines.count(prefix) != _count_lines(lines):
        raise NotOrdinary
    return np.array(_numbers(lines.replace(prefix, b""), kind), ARRAY_DTYPES[kind])


def _read_many_floats(lines: bytes, prefix_length: int) -> npt.NDArray[np.float32]:
    found = parse_plain_decimals(lines, prefix_length)
    values = found.values
    if len(found.odd):
        spans = zip(found.odd_starts.tolist(), found.odd_stops.tolist(), strict=True)
        values[found.odd] = _numbers(b"".join([lines[start : stop + 1] for start, stop in spans]), Kind.FLOAT)
    return values.astype(np.float32)


def _numbers(text: bytes, kind: Kind) -> list[Any]:
    """Convert lines of one number each."""
    if text.translate(None, _NUMBER_BYTES) or _LEADING_ZERO.search(b"\n" + text):
        raise NotOrdinary
    tokens = text.split()
    # The alphabet has no blank, so a line holds one token at most, and as many tokens as lines means one on each.
    if len(tokens) != _count_lines(text):
        raise NotOrdinary
    try:
        values = list(map(float if kind is Kind.FLOAT else int, tokens))
    except ValueError:
        raise NotOrdinary from None
    low, high = _RANGES[kind]
    if min(values) < low or max(values) > high:
        raise NotOrdinary
    return values


def _count_lines(text: bytes) -> int:
    return text.count(b"\n") + (not text.endswith(b"\n"))
