"""Names of external data files: whatever a tensor is called, its file lies in the model's folder and is its own."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Set as AbstractSet
from hashlib import sha256
from itertools import count

__all__ = ["MAX_NAME_BYTES", "name_key", "safe_file_name"]

MAX_NAME_BYTES = 200
"""Longest file name; file systems allow 255 bytes, which leaves room for what a save adds while it is under way."""

_UNSAFE = re.compile(
    r"""
    [/\\\x00-\x1f\x7f-\x9f]                                  # separators, NUL and control characters
    | \.{2,} | ^\.$                                          # the folder above, anywhere in a name; this folder
    | [. ]$                                                  # Windows drops them
    | ^(?:CON|PRN|AUX|NUL|COM\d|LPT\d)(?=\s*(?:\.|$))        # devices on Windows, with any ending
    | (?<=^[A-Za-z]):                                        # a drive on Windows
    """,
    re.VERBOSE | re.IGNORECASE,
)


def safe_file_name(tensor_name: str, ending: str, taken: AbstractSet[str]) -> str:
    """Return a file name for a tensor: its own name and the ending, unless that is unsafe, too long or taken.

    Args:
        tensor_name: any text, also empty.
        ending: appended to every name, such as `_deploy.external`.
        taken: the `name_key` of every name that is in use.

    Returns:
        A name without a folder, of at most `MAX_NAME_BYTES` bytes, whose `name_key` is not in `taken`. Unsafe
        characters are percent-encoded; a long name is cut and gets a digest of the whole; a taken one gets a number.
    """
    stem = _UNSAFE.sub(_percent_encoded, tensor_name) or "%"
    if _size(stem + ending) > MAX_NAME_BYTES:
        stem = _with_suffix(stem, "-" + sha256(tensor_name.encode()).hexdigest()[:16], ending)
    name = stem + ending
    for number in count(2):
        if name_key(name) not in taken:
            break
        name = _with_suffix(stem, f"-{number}", ending) + ending
    return name


def name_key(file_name: str) -> str:
    """Return what two file names share when some file system takes them for the same file."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", file_name).casefold())


def _percent_encoded(match: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in match.group().encode())


def _with_suffix(stem: str, suffix: str, ending: str) -> str:
    """Append a suffix, cutting the stem so that the whole file name fits."""
    room = MAX_NAME_BYTES - _size(suffix + ending)
    return stem.encode()[:room].decode(errors="ignore") + suffix


def _size(text: str) -> int:
    return len(text.encode())
