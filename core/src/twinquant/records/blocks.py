"""Where the blocks of a record file are, found from braces, strings and comments alone.

The text may be wrong everywhere else: this serves messages about broken files, and sets aside blocks whose contents are
another feature's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Block", "set_aside", "top_level_blocks"]

# Every alternative begins with one of a few bytes: the search skips long runs of numbers quickly.
_LANDMARK = re.compile(
    rb"""["'#{}<>] (?: (?<=") (?:[^"\\\n]|\\.)*"? | (?<=') (?:[^'\\\n]|\\.)*'? | (?<=\#) [^\n]* | (?<=[{}<>]) )""",
    re.VERBOSE,
)
_NAME = re.compile(rb"\b(?:prune_)?record\b")
_NOT_LINE_END = re.compile(rb"[^\n]")
_SEPARATOR = re.compile(rb"\s*[,;]")


@dataclass(frozen=True, slots=True)
class Block:
    """A block at the top level of a record file.

    Attributes:
        name: "record" or "prune_record", as bytes.
        start: position of the first byte, that of the name.
        stop: position behind the closing brace, or the end of the text where it is absent.
        closed: whether there is a closing brace.
    """

    name: bytes
    start: int
    stop: int
    closed: bool = True


def top_level_blocks(data: bytes) -> Iterator[Block]:
    """Find the `record` and `prune_record` blocks of a text, in order.

    Args:
        data: the text in UTF-8.
    """
    depth = position = 0
    name = b"record"
    start: int | None = None
    for landmark in _LANDMARK.finditer(data):
        if depth == 0:
            for found in _NAME.finditer(data, position, landmark.start()):
                name, start = found.group(), found.start()
            position = landmark.end()
        mark = landmark.group()
        if mark in (b"{", b"<"):
            if start is None:
                start = landmark.start()
            depth += 1
        elif mark in (b"}", b">") and depth > 0:
            depth -= 1
            if depth == 0 and start is not None:
                position = landmark.end()
                yield Block(name, start, position)
                start = None
    if depth > 0 and start is not None:
        yield Block(name, start, len(data), closed=False)


def set_aside(data: bytes, block_name: bytes) -> tuple[bytes, tuple[Block, ...]]:
    """Take the blocks of one name out of a text.

    Args:
        data: the text in UTF-8.
        block_name: "record" or "prune_record", as bytes.

    Returns:
        The text with blanks in the place of the blocks, so that lines and columns stay what they are; and the blocks.
    """
    if block_name not in data:
        return data, ()
    blocks = tuple(block for block in top_level_blocks(data) if block.name == block_name)
    pieces = []
    position = 0
    for block in blocks:
        separator = _SEPARATOR.match(data, block.stop)
        stop = separator.end() if separator else block.stop
        pieces += [data[position : block.start], _NOT_LINE_END.sub(b" ", data[block.start : stop])]
        position = stop
    return b"".join([*pieces, data[position:]]), blocks
