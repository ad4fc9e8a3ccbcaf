"""The moves that finish a save, written down before the first of them, so that any later process can complete them."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from twinquant.errors import OutputPathError
from twinquant.outputs.target import RESERVED_PREFIX

__all__ = ["Area", "Move", "apply", "is_plain_name", "read_journal", "write_journal"]


class Area(str, Enum):
    """Where a file of a save can be. The value is the folder's name within the staging folder."""

    NEW = "new"
    """Staged, not yet an output."""
    LIVE = "live"
    """An output: directly in the target folder."""
    OLD = "old"
    """Replaced or deleted by this save."""


@dataclass(frozen=True, slots=True)
class Move:
    """Move one file, which keeps its name.

    Attributes:
        name: a plain file name.
        source: where it is.
        destination: where it goes; whatever has that name there is replaced.
    """

    name: str
    source: Area
    destination: Area


def is_plain_name(name: str) -> bool:
    """Tell whether a name denotes a file directly in a folder, and none of the core's own."""
    return (
        name not in ("", ".", "..")
        and "\0" not in name
        and PurePath(name).name == name
        and not name.startswith(RESERVED_PREFIX)
    )


def write_journal(path: Path, moves: Sequence[Move]) -> None:
    """Write a journal; it appears under its name whole or not at all."""
    rows = [[move.name, move.source.value, move.destination.value] for move in moves]
    draft = path.with_name(f"{path.name}.draft")
    draft.write_text(json.dumps({"version": 1, "moves": rows}), encoding="ascii")
    draft.replace(path)


def read_journal(path: Path) -> list[Move]:
    """Read a journal that may come from anywhere: only moves within one target folder are believed.

    Raises:
        OutputPathError: it is not a journal as `write_journal` writes it.
    """
    try:
        content = json.loads(path.read_text(encoding="ascii"))
        if content["version"] != 1:
            raise ValueError(f"version {content['version']!r} is not 1")
        return [_move(row) for row in content["moves"]]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise OutputPathError(
            f"an interrupted save left a journal that cannot be followed: {str(path)!r}: {error}; "
            f"remove the folder {str(path.parent)!r} to give that save up, then save again"
        ) from error


def _move(row: Any) -> Move:
    name, source, destination = row
    move = Move(name, Area(source), Area(destination))
    if not isinstance(name, str) or not is_plain_name(name):
        raise ValueError(f"{name!r} is not a plain file name")
    if (move.source is Area.LIVE) is (move.destination is Area.LIVE):
        raise ValueError(f"{name!r} would move from {source!r} to {destination!r}")
    return move


def apply(moves: Sequence[Move], folder: Path, staging: Path) -> None:
    """Do the moves that are not done yet. Renames only: no data is copied, and every file is whole at every moment."""
    places = {Area.NEW: staging / Area.NEW.value, Area.LIVE: folder, Area.OLD: staging / Area.OLD.value}
    for move in moves:
        source, destination = places[move.source] / move.name, places[move.destination] / move.name
        # A source that is gone was moved before this process took over; a staged file that is still there never became
        # an output, so what has its name there is not ours to withdraw.
        if os.path.lexists(source) and not (move.destination is Area.NEW and os.path.lexists(destination)):
            source.replace(destination)
