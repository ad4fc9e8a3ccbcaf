"""Putting several files and folders in their places: all of them, or everything is as it was."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from twinquant.outputs import staging_folder

__all__ = ["all_or_none", "put", "staging_beside"]


@contextmanager
def staging_beside(paths: Iterable[Path]) -> Iterator[dict[Path, Path]]:
    """Give, for each of some targets, an empty folder on its own file system; targets in one folder share one.

    Missing folders of targets are made, and removed again when the body raises.

    Raises:
        OutputError: the system refuses to write there, now or in the body.
    """
    found: dict[Path, Path] = {}
    with ExitStack() as stack:
        opened: dict[Path, Path] = {}
        # In one order for everybody, as each folder is locked meanwhile.
        for path in sorted(paths, key=lambda path: os.path.realpath(path.parent)):
            folder = next((other for other in opened if _is_same(other, path.parent)), path.parent)
            if folder not in opened:
                opened[folder] = stack.enter_context(staging_folder(folder))
            found[path] = opened[folder]
        yield found


@contextmanager
def all_or_none() -> Iterator[ExitStack]:
    """Give `put` what it notes the way back in; when the body raises, all targets become what they were."""
    with ExitStack() as undo:
        yield undo
        undo.pop_all()


def put(staged: Path, target: Path, undo: ExitStack) -> None:
    """Move a staged file or folder to a target on the same file system; what is there is kept beside the staged one.

    Args:
        staged: what is moved.
        target: where it goes.
        undo: what `all_or_none` gave.

    Raises:
        OSError: the system refuses the move.
    """
    former: Path | None = None
    if os.path.lexists(target):
        former = Path(tempfile.mkdtemp(dir=staged.parent)) / target.name
        undo.callback(_put_back, former, target)
        _set_aside(target, former)
    else:
        undo.callback(_put_back, former, target)
    staged.replace(target)


def _set_aside(target: Path, former: Path) -> None:
    """Give a target a second name, so that it is there at every moment; where that is impossible, another name."""
    try:
        former.hardlink_to(target)
    except OSError:
        target.replace(former)


def _put_back(former: Path | None, target: Path) -> None:
    if former is not None and not os.path.lexists(former):
        return  # it was not even set aside
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    elif former is None:
        target.unlink(missing_ok=True)
    if former is not None:
        former.replace(target)


def _is_same(one: Path, two: Path) -> bool:
    try:
        return one.samefile(two)
    except OSError:  # the second one is still missing, so nobody's staging folder is in it
        return False
