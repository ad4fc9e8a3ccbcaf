"""The staging folder of a save, and the clean-up after saves that were killed."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from twinquant.errors import OutputPathError, OutputWriteError
from twinquant.outputs.failure import output_errors
from twinquant.outputs.journal import Area, apply, read_journal
from twinquant.outputs.lock import LOCK_NAME, locked_folder
from twinquant.outputs.target import RESERVED_PREFIX

__all__ = ["JOURNAL_NAME", "recover", "staging_folder"]

JOURNAL_NAME = "journal.json"
_STAGING_NAME = f"{RESERVED_PREFIX}staging"

_log = logging.getLogger(__name__)


@contextmanager
def staging_folder(folder: Path) -> Iterator[Path]:
    """Give an empty folder on the target's own file system for the files of one save.

    While the body runs, the target folder is locked against other saves. It is created where it is missing, and a save
    that was killed there is finished first. Afterwards nothing temporary is left; when the body raises, folders that
    were created are removed again.

    Args:
        folder: where the outputs will go.

    Raises:
        OutputPathError: the path cannot be a folder.
        OutputWriteError: the system refuses to write; raised for an OSError of the body, too.
    """
    with output_errors(folder), locked_folder(folder, create=True):
        _finish_interrupted(folder)
        staging = folder / _STAGING_NAME
        try:
            for path in (staging, staging / Area.NEW.value, staging / Area.OLD.value):
                path.mkdir(mode=0o750)  # as open as the outputs: readers of the group see whether there is a journal
            yield staging / Area.NEW.value
        finally:
            # A journal that is still there belongs to moves that could be neither completed nor taken back: the next
            # command completes them.
            if not (staging / JOURNAL_NAME).exists():
                _discard(staging)


def recover(folder: str | os.PathLike[str]) -> None:
    """Finish what a killed save left in a folder: complete its moves if they had begun, else remove its staging folder.

    Cheap where there is nothing to do. Call it before reading outputs; waits for a save that is running there.

    Args:
        folder: a folder with outputs; may be missing.

    Raises:
        OutputError: the moves had begun and cannot be completed: the files in the folder are of two saves.
    """
    path = Path(folder)
    staging = path / _STAGING_NAME
    if not os.path.lexists(staging) and not os.path.lexists(path / LOCK_NAME):
        return
    try:
        with output_errors(path), locked_folder(path):
            _finish_interrupted(path)
    except OutputWriteError as error:
        # Without a journal the outputs are whole, and a reader need not be able to write to the folder.
        with output_errors(path):
            unfinished = (staging / JOURNAL_NAME).exists()
        if unfinished:
            raise OutputWriteError(
                f"a save into {str(path)!r} was killed halfway and cannot be completed: {error.__cause__}; files of "
                "two saves may be mixed there until somebody who may write to the folder saves or verifies in it"
            ) from error


def _finish_interrupted(folder: Path) -> None:
    """Bring a locked folder into order."""
    staging = folder / _STAGING_NAME
    if not os.path.lexists(staging):
        return
    # Through a symbolic link, files elsewhere would be moved.
    for path in (staging, staging / Area.NEW.value, staging / Area.OLD.value):
        if os.path.lexists(path) and (path.is_symlink() or not path.is_dir()):
            raise OutputPathError(
                f"{str(path)!r} is not what a save leaves there; remove it, or choose another save_path"
            )
    journal = staging / JOURNAL_NAME
    if journal.exists():
        _log.warning("completing a save that was interrupted in %s", folder)
        apply(read_journal(journal), folder, staging)
        journal.unlink()
    _discard(staging)


def _discard(staging: Path) -> None:
    """Remove a staging folder that no journal refers to. What cannot be removed is left to the next command."""
    shutil.rmtree(staging, ignore_errors=True)
    if os.path.lexists(staging):
        _log.warning("cannot remove the temporary folder %s", staging)
