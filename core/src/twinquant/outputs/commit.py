"""The last step of a save: check what was staged, then move it all into place, or nothing."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from twinquant.errors import BrokenPluginError, OutputPathError, OutputWriteError
from twinquant.outputs.artifact import DualOutput
from twinquant.outputs.journal import Area, Move, apply, is_plain_name, write_journal
from twinquant.outputs.ownership import Companions, check_not_inputs, find_stale
from twinquant.outputs.staging import JOURNAL_NAME

__all__ = ["commit"]

_UNDO_NAME = "undo.json"
_FILE_MODE = 0o640
_BUG = "nothing was saved; this is a bug of the plugin, please report it to its authors"

_log = logging.getLogger(__name__)


def commit(
    staged: DualOutput,
    staged_folder: Path,
    folder: Path,
    *,
    inputs: Sequence[Path],
    companions: Companions,
    companion_endings: tuple[str, ...] = (),
    durable: bool = False,
) -> DualOutput:
    """Move the staged files into the target folder and delete what they make obsolete: all of it or nothing.

    Must run inside `staging_folder`.

    Args:
        staged: the twins, with paths in `staged_folder`.
        staged_folder: what `staging_folder` gave.
        folder: the target folder.
        inputs: files that the save reads; none of them is replaced or deleted.
        companions: tells which files belong to a model file.
        companion_endings: how the names of those end that a save writes itself, and may delete.
        durable: wait until the disk has everything, so that a power loss cannot undo or tear the save.

    Returns:
        The twins, with their final paths.

    Raises:
        BrokenPluginError: what is staged is not what was declared.
        OutputPathError: an output would replace a folder or an input.
        OutputConflictError: an output would replace a file of another model.
        OutputWriteError: the moves failed halfway and could not be taken back.
        OSError: the moves failed and were taken back.
    """
    names = _check_staged(staged, staged_folder)
    models = [artifact.model.name for artifact in staged.artifacts]
    # Models last: whoever sees a new model for the first time finds its other files in place.
    names = [*(name for name in names if name not in models), *models]
    for name in names:
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            raise OutputPathError(
                f"the output {str(folder / name)!r} exists as a folder; remove it, or choose another save_path"
            )
    check_not_inputs(names, folder, inputs)
    stale = find_stale(models, names, staged_folder, folder, inputs, companions, companion_endings)
    for name in names:
        (staged_folder / name).chmod(_FILE_MODE)
    _move_into_place(names, stale, folder, staged_folder.parent, durable=durable)

    def final(paths: Sequence[Path]) -> tuple[Path, ...]:
        return tuple(folder / path.name for path in paths)

    artifacts = tuple(replace(artifact, files=final(artifact.files)) for artifact in staged.artifacts)
    return replace(staged, artifacts=artifacts, sidecars=final(staged.sidecars))


def _check_staged(staged: DualOutput, folder: Path) -> list[str]:
    """Return the names of the declared files if they are whole and all there is in the staging folder."""
    for artifact in staged.artifacts:
        if not artifact.files:
            raise BrokenPluginError(f"the plugin wrote no file for the {artifact.flavor.value} model; {_BUG}")
    where = os.path.realpath(folder)
    names: dict[str, None] = {}
    for path in [*(path for artifact in staged.artifacts for path in artifact.files), *staged.sidecars]:
        name = path.name
        if os.path.realpath(path.parent) != where or not is_plain_name(name):
            raise BrokenPluginError(
                f"the plugin declared the file {str(path)!r}, which is not in {str(folder)!r}; {_BUG}"
            )
        if name in names:
            raise BrokenPluginError(f"the plugin wrote two files called {name!r}; {_BUG}")
        if not os.path.lexists(folder / name):
            raise BrokenPluginError(f"the plugin declared the file {name!r}, but did not write it; {_BUG}")
        status = (folder / name).lstat()
        # A second name of the same file would be another file's content, whose mode must not change.
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise BrokenPluginError(f"the plugin wrote {name!r} as a link or a folder, not as a file; {_BUG}")
        names[name] = None
    for artifact in staged.artifacts:
        if (folder / artifact.model.name).stat().st_size == 0:
            raise BrokenPluginError(f"the plugin wrote an empty model file {artifact.model.name!r}; {_BUG}")
    for name in sorted({path.name for path in folder.iterdir()} - names.keys()):
        raise BrokenPluginError(f"the plugin wrote the file {name!r}, but did not declare it; {_BUG}")
    return list(names)


def _move_into_place(names: Sequence[str], stale: Sequence[str], folder: Path, staging: Path, *, durable: bool) -> None:
    new, old = staging / Area.NEW.value, staging / Area.OLD.value
    journal, undo = staging / JOURNAL_NAME, staging / _UNDO_NAME
    replaced = [name for name in names if os.path.lexists(folder / name)]
    forward = [Move(name, Area.NEW, Area.LIVE) for name in names]
    forward += [Move(name, Area.LIVE, Area.OLD) for name in stale]
    back = [Move(name, Area.OLD, Area.LIVE) for name in (*replaced, *stale)]
    back += [Move(name, Area.LIVE, Area.NEW) for name in names if name not in replaced]
    if _keep_old(replaced, folder, old):
        # Written now, because a full disk may be what stops the moves.
        write_journal(undo, back)
    if durable:
        _sync(*(new / name for name in names), new, folder)
    for name in replaced:
        _log.info("replacing %s", folder / name)
    for name in stale:
        _log.info("deleting %s, which belonged to a replaced model", folder / name)
    try:
        write_journal(journal, forward)
        if durable:
            _sync(journal, staging)
        apply(forward, folder, staging)
        if durable:
            _sync(folder, folder.parent)
        journal.unlink()
    except BaseException as error:
        if all(os.path.lexists(new / name) for name in names):  # nothing has moved
            journal.unlink(missing_ok=True)
            raise
        try:
            undo.replace(journal)
            apply(back, folder, staging)
            journal.unlink()
        except OSError:
            if isinstance(error, OSError):
                raise OutputWriteError(
                    f"the save into {str(folder)!r} stopped halfway and could not be taken back: {error}; files of "
                    "two saves are mixed there until you remove the cause and save or verify in that folder again"
                ) from error
        raise


def _keep_old(names: Sequence[str], folder: Path, old: Path) -> bool:
    """Give the files that will be replaced a second name, without copying; tell whether the file system can do that."""
    try:
        for name in names:
            if (folder / name).is_symlink():
                (old / name).symlink_to((folder / name).readlink())
            else:
                (old / name).hardlink_to(folder / name)
    except OSError as error:
        _log.debug("a failure during the moves could not be taken back: no hard link in %s: %s", folder, error)
        return False
    return True


def _sync(*paths: Path) -> None:
    """Wait until the disk has the content of files and folders."""
    for path in paths:
        # Windows cannot open folders.
        if os.name == "nt" and path.is_dir():
            continue
        descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
