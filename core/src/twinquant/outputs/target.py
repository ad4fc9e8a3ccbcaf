"""Where a save puts its files: the folder and the prefix that a `save_path` means."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from twinquant.errors import ArgumentError, OutputPathError

__all__ = ["RESERVED_PREFIX", "Target", "parse_save_path"]

RESERVED_PREFIX = ".twinquant-"
"""How the names of the core's own temporary files start; no output may be called so."""

# Common file systems allow 255 bytes a name, and plugins append up to 35 ("_fake_quant_weights.caffemodel").
_LONGEST_PREFIX = 220


@dataclass(frozen=True, slots=True)
class Target:
    """What a `save_path` means.

    Attributes:
        folder: where all files of the save go; may not exist yet.
        prefix: what their names start with; may be empty.
    """

    folder: Path
    prefix: str


def parse_save_path(save_path: str | os.PathLike[str]) -> Target:
    """Split a `save_path` into folder and prefix, without touching any file.

    `d/p` means the folder `d` and the prefix "p". A path that ends with a slash, is empty, ends with `.` or `..`, or is
    an existing folder means that folder and no prefix. `~` is an ordinary character.

    Args:
        save_path: what the user gave. A `Path` cannot hold a trailing slash: `Path("d/")` is a prefix until `d` exists.

    Raises:
        ArgumentError: it is no path at all.
        OutputPathError: no file can be called so.
    """
    try:
        text = os.fspath(save_path)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise ArgumentError(f"save_path: must be a path (str or PathLike), got {type(save_path).__name__}")
    if "\0" in text:
        raise OutputPathError(f"save_path {text!r}: holds a NUL character, which no file name can")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise OutputPathError(f"save_path {text!r}: cannot be a file name here: {error.reason}") from error
    folder, prefix = os.path.split(text)
    if prefix in ("", ".", "..") or os.path.isdir(text):  # noqa: PTH112 - Path.is_dir raises where a name is too long
        return Target(Path(text), "")
    if prefix.startswith(RESERVED_PREFIX):
        raise OutputPathError(
            f"save_path {text!r}: names that start with {RESERVED_PREFIX!r} are kept for temporary files; "
            "choose another prefix"
        )
    if len(os.fsencode(prefix)) > _LONGEST_PREFIX:
        raise OutputPathError(
            f"save_path: the prefix {prefix[:30]!r}... is {len(os.fsencode(prefix))} bytes long; "
            f"at most {_LONGEST_PREFIX} leave room for the rest of the file names"
        )
    return Target(Path(folder), prefix)
