"""The texts of single values in a prototxt: what a literal means, and how a value is written."""

from __future__ import annotations

import re

import numpy as np

__all__ = ["Identifier", "is_literal", "is_whole_literal", "literal_text", "unquote"]

_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\'')
_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{1,2})|([0-7]{1,3})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_SIMPLE_ESCAPES = {b"a": b"\a", b"b": b"\b", b"f": b"\f", b"n": b"\n", b"r": b"\r", b"t": b"\t", b"v": b"\v"}
_WRITTEN_ESCAPES = {0x0A: "\\n", 0x0D: "\\r", 0x09: "\\t", 0x22: '\\"', 0x5C: "\\\\"}

_SMALLEST_POSITIONAL, _LARGEST_POSITIONAL = 1e-4, 1e9


class Identifier(str):
    """A bare word, such as the name of an enumeration's value."""

    __slots__ = ()


def is_literal(text: str) -> bool:
    """Tell whether the text of a value is a string literal, with its quotes."""
    return text[:1] in ('"', "'")


def is_whole_literal(text: str) -> bool:
    """Tell whether a string literal ends with the quote that it starts with."""
    return _LITERAL.fullmatch(text) is not None


def unquote(text: str) -> bytes:
    """Return what one string literal, or several with blanks between, stands for."""
    return b"".join(
        _ESCAPE.sub(_unescape, part.group()[1:-1].encode("utf-8", "surrogateescape"))
        for part in _LITERAL.finditer(text)
    )


def _unescape(match: re.Match[bytes]) -> bytes:
    hexadecimal, octal, short, long, other = match.groups()
    if hexadecimal:
        return bytes([int(hexadecimal, 16)])
    if octal:
        return bytes([int(octal, 8) & 0xFF])
    if short or long:
        code = int(short or long, 16)
        return chr(code).encode("utf-8", "surrogatepass") if code <= 0x10FFFF else match.group()
    return _SIMPLE_ESCAPES.get(other, other)


def literal_text(value: str | int | float | bool | bytes) -> str:
    r"""Return the text of a value.

    Args:
        value: text and bytes become quoted literals, bytes that are not printable ASCII in octal, as `"\200"`;
            an `Identifier` a bare word; a number of type float the shortest text that reads back to the same float32.
    """
    if isinstance(value, Identifier):
        return str(value)
    if isinstance(value, str):
        return '"' + "".join(_character(letter) for letter in value) + '"'
    if isinstance(value, bytes):
        return '"' + "".join(_byte(byte) for byte in value) + '"'
    if isinstance(value, (bool, np.bool_)):
        return "true" if value else "false"
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    return _float_text(np.float32(value))


def _float_text(value: np.float32) -> str:
    """Return the shortest text, the same with every version of NumPy: their `str` differs for large numbers."""
    if not np.isfinite(value):
        return str(value)
    if value == 0 or _SMALLEST_POSITIONAL <= abs(value) < _LARGEST_POSITIONAL:
        return np.format_float_positional(value, trim="0")
    return np.format_float_scientific(value, trim="0")


def _character(letter: str) -> str:
    code = ord(letter)
    return _byte(code) if code < 0x80 else letter


def _byte(code: int) -> str:
    if code in _WRITTEN_ESCAPES:
        return _WRITTEN_ESCAPES[code]
    return chr(code) if 0x20 <= code < 0x7F else f"\\{code:03o}"
