"""Where a command's words go: results to stdout, everything else to stderr."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TextIO

__all__ = ["Console", "LogLines"]

_GAP = "  "


@dataclass(frozen=True, slots=True)
class Console:
    """Two text streams and how to write on them.

    Attributes:
        out: results: what a script may read.
        err: errors, warnings and progress.
    """

    out: TextIO
    err: TextIO

    def line(self, text: str = "") -> None:
        """Write one line of the result."""
        self.out.write(_printable(text) + "\n")

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Write a table: drawn by `rich` on a terminal, else as plain aligned columns that grep and awk can read."""
        cells = [[_printable(cell).replace("\n", r"\n") for cell in row] for row in rows]
        if not (self.out.isatty() and _draw(self.out, header, cells)):
            self._align(header, cells)

    def error(self, text: str) -> None:
        """Write why the command ends."""
        self.flush()
        self.err.write(f"twinquant: error: {_printable(text)}\n")

    def flush(self) -> None:
        """Hand over everything written so far."""
        self.out.flush()

    def _align(self, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        lines = [header, *rows]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        lines.insert(1, ["-" * width for width in widths])
        for line in lines:
            padded = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
            self.line(_GAP.join(padded).rstrip())


class LogLines(logging.Handler):
    """Writes what the library logs as lines on stderr.

    Unlike a `StreamHandler` it asks for `sys.stderr` each time: a progress bar puts its own stream there while it is
    shown, so that lines and bar do not mix.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, with the traceback if the record has one."""
        sys.stderr.write(f"twinquant: {record.levelname.lower()}: {_printable(self.format(record))}\n")


def _draw(out: TextIO, header: Sequence[str], rows: Iterable[Sequence[str]]) -> bool:
    """Draw a table with rich; False where it is not installed."""
    try:
        from rich import box
        from rich.console import Console as RichConsole
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for title in header:
        table.add_column(title, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    RichConsole(file=out).print(table)
    return True


def _printable(text: str) -> str:
    """Replace control characters: a name in somebody's model must not steer the user's terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)
