"""Many plain decimal numbers to float64 at once, each as exactly as `float()` reads it.

A run of lines is one array of bytes. Up to eight digits at a time are loaded as one 64-bit word for every line, and
three multiplications turn a word of digits into its value. With at most 15 digits the number without its dot and the
power of ten that divides it are both exact in float64, so their quotient is the correctly rounded value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["PlainDecimals", "parse_plain_decimals"]

_WORD = 8
_MOST_DIGITS = 15
_NEWLINE, _DOT, _ZERO = b"\n.0"


def _word(byte_values: bytes) -> np.uint64:
    word: np.uint64 = np.uint64(int.from_bytes(byte_values, "little"))
    return word


_POWERS_OF_TEN = 10 ** np.arange(_MOST_DIGITS + 1, dtype=np.uint64)
# By number of digits: the digits of a number end its word, what precedes them is cut off.
_LAST_BYTES = np.array([_word(bytes(_WORD - count) + b"\xff" * count) for count in range(_WORD + 1)])
_ZERO_DIGITS = _word(b"0" * _WORD)
_LOW_BITS = _word(b"\x7f" * _WORD)
_HIGH_BIT = _word(b"\x80" * _WORD)
_TO_HIGH_BIT_ABOVE_NINE = _word(bytes([0x80 - 10]) * _WORD)

# Neighbouring digits, pairs and fours are joined: (factor of the left one, shift, mask of what remains).
_JOINS = (
    (np.uint64(1 + (10 << 8)), np.uint64(8), _word(b"\xff\x00" * 4)),
    (np.uint64(1 + (100 << 16)), np.uint64(16), _word(b"\xff\xff\x00\x00" * 2)),
    (np.uint64(1 + (10_000 << 32)), np.uint64(32), _word(b"\xff" * 4 + bytes(4))),
)


@dataclass(frozen=True, slots=True, eq=False)
class PlainDecimals:
    """The numbers of a run of lines, and which texts among them are not plain and still to be converted.

    Attributes:
        values: float64 `(n,)`: the number of each line; meaningless at `odd`.
        odd: int64 `(m,)`: the lines, from 0, whose text is not a plain decimal.
        odd_starts: int64 `(m,)`: where in the text the odd ones start.
        odd_stops: int64 `(m,)`: where they stop.
    """

    values: npt.NDArray[np.float64]
    odd: npt.NDArray[np.intp]
    odd_starts: npt.NDArray[np.intp]
    odd_stops: npt.NDArray[np.intp]


def parse_plain_decimals(lines: bytes, prefix_length: int) -> PlainDecimals:
    """Convert the numbers of many lines.

    Plain are up to 8 digits, then perhaps a dot and further digits, at most 15 digits together, without a superfluous
    leading zero.

    Args:
        lines: lines that each end with a newline.
        prefix_length: how many bytes of a line precede its number.
    """
    padding = 2 * _WORD  # so that a word before the first digits is inside of the text
    text = b"\n" * padding + lines
    data = np.frombuffer(text, np.uint8)
    words = np.ndarray(len(text) - _WORD + 1, "<u8", text, strides=(1,))

    newlines = np.flatnonzero(data == _NEWLINE)[padding - 1 :]
    starts, stops = newlines[:-1] + 1 + prefix_length, newlines[1:]
    dots = _dots(data, stops)
    whole = dots - starts
    fraction = np.maximum(stops - dots - 1, 0)
    plain = (whole >= 1) & (whole <= _WORD) & (whole + fraction <= _MOST_DIGITS)
    plain &= (data[starts] != _ZERO) | (whole == 1)
    whole, fraction = np.where(plain, whole, 0), np.where(plain, fraction, 0)

    digits = np.zeros(len(stops), np.uint64)
    for ends, counts in (
        (dots, whole),
        (stops - _WORD, np.maximum(fraction - _WORD, 0)),
        (stops, np.minimum(fraction, _WORD)),
    ):
        part = words[ends - _WORD] & _LAST_BYTES[counts]
        part ^= _ZERO_DIGITS & _LAST_BYTES[counts]
        plain &= ((((part & _LOW_BITS) + _TO_HIGH_BIT_ABOVE_NINE) | part) & _HIGH_BIT) == 0
        digits = digits * _POWERS_OF_TEN[counts] + _join(part)

    odd = np.flatnonzero(~plain)
    values = digits / _POWERS_OF_TEN[fraction].astype(np.float64)
    return PlainDecimals(values, odd, starts[odd] - padding, stops[odd] - padding)


def _dots(data: npt.NDArray[np.uint8], stops: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Find the dot of each line; where there is none, the end of the line."""
    dots: npt.NDArray[np.intp] = np.flatnonzero(data == _DOT)
    if len(dots) == len(stops) and np.all(dots < stops) and np.all(dots[1:] > stops[:-1]):
        return dots
    found: npt.NDArray[np.intp] = stops.copy()
    found[np.searchsorted(stops, dots)] = dots
    return found


def _join(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Turn words of eight digit values, the most significant in the lowest byte, into numbers."""
    for factor, shift, mask in _JOINS:
        words = ((words * factor) >> shift) & mask
    return words
