"""Replacing a file in one step, so that a reader sees the old content or the new one, never a part."""

from __future__ import annotations

import secrets
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(path: Path, data: bytes | memoryview) -> None:
    """Write a file, or leave what is there untouched.

    The data goes to a new file beside the target, which then replaces the target.

    Args:
        path: the file; its folder exists, the file itself may.
        data: its content.

    Raises:
        OSError: the folder is missing or not writable, the disk is full, or the target is a folder.
    """
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
