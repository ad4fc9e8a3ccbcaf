"""The protobuf wire format, just enough to find fields in a message without parsing it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

__all__ = [
    "FIXED32",
    "FIXED64",
    "LENGTH_DELIMITED",
    "VARINT",
    "ByteSequence",
    "WireError",
    "encode_varint",
    "fields",
    "header",
    "read_varint",
]

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""Wire types."""

_FIXED_SIZE = {FIXED64: 8, FIXED32: 4}

_LONGEST_VARINT = 10
_MOST_FIELD_NUMBERS = 1 << 29


class ByteSequence(Protocol):
    """Bytes, wherever they are: in memory, in a mapped file, or behind a window of a file."""

    def __getitem__(self, index: int, /) -> int:
        """Return one byte."""


class WireError(ValueError):
    """The bytes are no protobuf message, or only the beginning of one."""


def read_varint(data: ByteSequence, position: int, end: int) -> tuple[int, int]:
    """Read the varint at a position.

    Returns:
        Its value (unsigned), and the position behind it.

    Raises:
        WireError: it does not end before `end`, or is longer than any varint.
    """
    value = shift = 0
    for index in range(position, min(end, position + _LONGEST_VARINT)):
        byte = data[index]
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, index + 1
        shift += 7
    raise WireError(f"the number at byte {position} does not end")


def encode_varint(value: int) -> bytes:
    """Return a non-negative number as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def header(number: int, length: int) -> bytes:
    """Return what stands before the payload of a length-delimited field: its tag and its length."""
    return encode_varint(number << 3 | LENGTH_DELIMITED) + encode_varint(length)


def fields(data: ByteSequence, start: int, end: int) -> Iterator[tuple[int, int, int, int, int]]:
    """Walk over the fields of the message in `data[start:end]`, touching nothing but their headers.

    Yields:
        The field's number and wire type; where its tag, its payload and the next field start. A varint's payload is
        the varint.

    Raises:
        WireError: the bytes are no protobuf message, or a field reaches beyond the end.
    """
    position = start
    while position < end:
        tag, body = data[position], position + 1
        if tag > 0x7F:
            tag, body = read_varint(data, position, end)
        number, wire_type = tag >> 3, tag & 7
        if not 0 < number < _MOST_FIELD_NUMBERS:
            raise WireError(f"there is no field number {number} (at byte {position})")
        if wire_type == LENGTH_DELIMITED:
            if body < end and data[body] <= 0x7F:
                length, body = data[body], body + 1
            else:
                length, body = read_varint(data, body, end)
            stop = body + length
        elif wire_type == VARINT:
            stop = read_varint(data, body, end)[1]
        elif wire_type in _FIXED_SIZE:
            stop = body + _FIXED_SIZE[wire_type]
        else:
            raise WireError(f"field {number} at byte {position} has the wire type {wire_type}, which protobuf lacks")
        if stop > end:
            raise WireError(
                f"field {number} at byte {position} reaches to byte {stop}, but the data ends at byte {end}"
            )
        yield number, wire_type, position, body, stop
        position = stop
