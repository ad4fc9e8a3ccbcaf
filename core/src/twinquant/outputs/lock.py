"""One save at a time in a folder: across processes, and across threads of one process."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from twinquant.outputs.target import RESERVED_PREFIX

__all__ = ["LOCK_NAME", "locked_folder"]

LOCK_NAME = f"{RESERVED_PREFIX}lock"
"""Name of the lock file; it exists while a save runs, and after one was killed."""

_log = logging.getLogger(__name__)

# How often a folder may vanish between its creation and the lock before that is an error of its own: each time means
# that another save has failed and removed the folder; a deleted working directory vanishes forever.
_MOST_VANISHINGS = 100


@contextmanager
def locked_folder(folder: Path, *, create: bool = False) -> Iterator[None]:
    """Hold a folder's lock; wait for it where another save has it.

    No lock file is left afterwards.

    Args:
        folder: the folder.
        create: create the folder and its parents where they are missing; those that were created are removed again
            when the body raises.

    Raises:
        OSError: the folder cannot be created, or the lock file cannot be opened in it.
    """
    created: list[Path] = []
    path = folder / LOCK_NAME
    try:
        descriptor = _acquire_creating(path, created) if create else _acquire(path)
        try:
            yield
        finally:
            _release(descriptor, path)
    except BaseException:
        for parent in reversed(created):
            with suppress(OSError):  # another save uses it by now
                parent.rmdir()
        raise


def _acquire_creating(path: Path, created: list[Path]) -> int:
    for _ in range(_MOST_VANISHINGS):
        _create(path.parent, created)
        with suppress(FileNotFoundError):
            return _acquire(path)
    return _acquire(path)


def _create(folder: Path, created: list[Path]) -> None:
    """Create a folder and its missing parents; append those that were missing to `created`, outermost first."""
    missing = []
    current = folder
    while not current.is_dir() and current != current.parent:
        missing.append(current)
        current = current.parent
    for path in reversed(missing):
        _create_one(path, created)


def _create_one(folder: Path, created: list[Path]) -> None:
    try:
        folder.mkdir()
    except FileExistsError:
        if not folder.is_dir():
            raise
    else:
        created.append(folder)


def _acquire(path: Path) -> int:
    while True:
        # Not through a symbolic link: that would create a file outside of the folder.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            if not _try_lock(descriptor, path):
                _log.info("waiting for another save to finish in %s", path.parent)
                _wait_lock(descriptor, path)
            if _is_still(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        # The holder before us removed the file when it was done: this lock guards nothing any more.
        os.close(descriptor)


def _is_still(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int, _path: Path) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except OSError:
            return False
        return True

    def _wait_lock(descriptor: int, path: Path) -> None:
        while not _try_lock(descriptor, path):
            time.sleep(0.05)

    def _release(descriptor: int, path: Path) -> None:
        os.close(descriptor)
        with suppress(OSError):  # an open file cannot be removed: whoever waits for the lock removes it
            path.unlink()

else:
    import fcntl

    def _try_lock(descriptor: int, path: Path) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError:
            # A file system without locks: nobody can have this one.
            path.unlink(missing_ok=True)
            raise
        return True

    def _wait_lock(descriptor: int, _path: Path) -> None:
        fcntl.flock(descriptor, fcntl.LOCK_EX)

    def _release(descriptor: int, path: Path) -> None:
        try:
            # Removed while it is locked: whoever waits for this file notices that it is gone and takes the next one.
            with suppress(OSError):
                path.unlink()
            # Explicitly: a child process that was forked meanwhile holds the descriptor, too.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
        finally:
            os.close(descriptor)
