"""Replacing a file in one step, so that a reader sees the old content or the new one, never a part."""

from __future__ import annotations

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import BinaryIO

__all__ = ["remove_abandoned_parts", "replace_file", "replacing"]


def replace_file(path: Path, data: bytes) -> None:
    """Write a file, or leave what is there untouched.

    Args:
        path: the file; its folder exists, the file itself may. Of a symbolic link, the file that it leads to is
            written.
        data: its content.

    Raises:
        OSError: the folder is missing or not writable, the disk is full, or the target is a folder, a device or a pipe.
    """
    with replacing(path) as file:
        file.write(data)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Give a new file beside the target, which replaces the target when the body is through, and else goes away.

    It has the permissions of the target. One that a killed process left is removed by the next one for the same target;
    processes that write at the same time have a file each, and the last one wins.

    Args:
        path: the target; its folder exists, the file itself may. Of a symbolic link, the file that it leads to is
            replaced.

    Raises:
        OSError: the folder is missing or not writable, the disk is full, or the target is a folder, a device or a pipe.
    """
    target = _target_of(path)
    if target.exists() and not (target.is_file() or target.is_dir()):
        raise OSError(errno.EINVAL, "it is a device or a pipe, not a file", str(target))
    mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    part, file, lock = _new_part(target, mode)
    try:
        with file:
            yield file
        if mode is not None:
            part.chmod(mode)
        part.replace(target)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    finally:
        if lock is not None:
            os.close(lock)


def remove_abandoned_parts(path: Path) -> None:
    """Remove what killed processes left beside a target that they were about to replace."""
    target = _target_of(path)
    for part in target.parent.glob(f".{_stem(target)}.*.part"):
        _remove_if_abandoned(part)


def _target_of(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _parts(target: Path) -> Iterator[Path]:
    """Give the names of files to be written, in the order in which they are tried; none is longer than others are."""
    return (target.with_name(f".{_stem(target)}.{number}.part") for number in count())


def _stem(target: Path) -> str:
    return sha256(os.fsencode(target.name)).hexdigest()[:16]


def _new_part(target: Path, mode: int | None) -> tuple[Path, BinaryIO, int | None]:
    """Open a file that no other process writes; return its path, the file, and what holds its lock."""
    # Who may read the target may read the part, nobody else; its owner may write it, to find out if it is abandoned.
    permissions = 0o666 if mode is None else (mode | stat.S_IWUSR) & 0o777

    def opened(name: str, flags: int) -> int:
        return os.open(name, flags, permissions)

    remove_abandoned_parts(target)
    for part in _parts(target):
        try:
            file = open(part, "xb", opener=opened)  # noqa: SIM115  the caller closes it
        except FileExistsError:
            continue  # another process is writing it
        lock = _lock(file)
        if _is_still(part, file):
            return part, file, lock
        # Another process took it for abandoned before it was locked.
        file.close()
        if lock is not None:
            os.close(lock)
    raise AssertionError("the names do not end")


def _is_still(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    # A file cannot be moved while something holds its lock, so nothing tells an abandoned one; the next name is taken.

    def _lock(_file: BinaryIO) -> int | None:
        return None

    def _remove_if_abandoned(_part: Path) -> None:
        pass

else:
    import fcntl

    def _lock(file: BinaryIO) -> int | None:
        """Lock a file until the returned descriptor is closed: the file itself is closed before it is moved."""
        # A file system without locks: its files are never taken for abandoned.
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        return os.dup(file.fileno())

    def _remove_if_abandoned(part: Path) -> None:
        with suppress(OSError), part.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Not what has the name by now: the file may have become the target, and the name another process's.
            if _is_still(part, file):
                part.unlink()
