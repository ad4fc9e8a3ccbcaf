"""Replacing a file in one step, so that a reader sees the old content or the new one, never a part."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["replace_file", "replacing"]


def replace_file(path: Path, data: bytes) -> None:
    """Write a file, or leave what is there untouched.

    Args:
        path: the file; its folder exists, the file itself may.
        data: its content.

    Raises:
        OSError: the folder is missing or not writable, the disk is full, or the target is a folder.
    """
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a new file beside the target, which replaces the target when the body is through, and else goes away.

    Args:
        path: the target; its folder exists, the file itself may.

    Raises:
        OSError: the folder is missing or not writable, the disk is full, or the target is a folder.
    """
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with part.open("wb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
