"""Which files of a target folder a save may replace or delete: never an input, never another model's."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from twinquant.errors import OutputConflictError, OutputPathError
from twinquant.outputs.journal import is_plain_name

__all__ = ["Companions", "check_not_inputs", "find_stale"]

Companions = Callable[[Path], Sequence[str]]
"""Lists the names of the files that belong to a model file; see `Framework.companions`."""

_Identity = str | tuple[int, int]


def check_not_inputs(names: Iterable[str], folder: Path, inputs: Sequence[Path]) -> None:
    """Make sure that no output replaces a file that the save reads.

    Raises:
        OutputPathError: one does.
    """
    identities = _identities(inputs)
    for name in names:
        if _identities([folder / name]) & identities:
            raise OutputPathError(
                f"the output {str(folder / name)!r} would replace an input of the same call; choose another path"
            )


def find_stale(
    models: Sequence[str],
    names: Sequence[str],
    staged: Path,
    folder: Path,
    inputs: Sequence[Path],
    companions: Companions,
    companion_endings: tuple[str, ...],
) -> list[str]:
    """List the files that belonged to the models being replaced, and that nothing in the folder needs any more.

    Args:
        models: names of the staged model files.
        names: names of all staged files.
        staged: the folder they are in.
        folder: the target folder.
        inputs: files that the save reads.
        companions: tells which files belong to a model file.
        companion_endings: how the names of those end that a save writes itself; no other file is ever stale.

    Returns:
        Names of regular files directly in `folder`, sorted. No input, no model file, no staged name is among them.

    Raises:
        OutputConflictError: a staged file would replace one that belongs to a model which stays.
    """
    replaced = [name for name in names if os.path.lexists(folder / name)]
    left_over = {name for model in models if _is_file(folder / model) for name in companions(folder / model)}
    left_over.difference_update(names)
    if not replaced and not left_over:
        return []
    suffixes = {Path(model).suffix for model in models}
    kept = [path for path in sorted(folder.iterdir()) if path.suffix in suffixes and _is_file(path)]
    needed: set[str] = set()
    for model in kept:
        if model.name in names:
            continue
        belongings = set(companions(model))
        for name in sorted(belongings.intersection(replaced)):
            raise OutputConflictError(
                f"the file {name!r} in {str(folder)!r} belongs to the model {model.name!r}, which would lose it; "
                "choose another folder for this save, or remove that model first"
            )
        needed |= belongings
    for name in models:
        needed.update(companions(staged / name))
    protected = _identities(inputs)
    return [
        name
        for name in sorted(left_over - needed)
        if name.endswith(companion_endings)
        and is_plain_name(name)
        and _is_file(folder / name)
        and Path(name).suffix not in suffixes
        and not _identities([folder / name]) & protected
    ]


def _is_file(path: Path) -> bool:
    """Tell whether a path is a regular file itself, not a link to one."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except (OSError, ValueError):
        return False


def _identities(paths: Iterable[Path]) -> set[_Identity]:
    """Return what two paths of one file have in common: the resolved path, and the file's number where it exists."""
    identities: set[_Identity] = set()
    for path in paths:
        identities.add(os.path.realpath(path))
        try:
            status = path.stat()
        except OSError:
            continue
        identities.add((status.st_dev, status.st_ino))
    return identities
