"""Where the files of a calibration go, checked before anything is written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from twinquant.errors import OutputPathError

__all__ = ["StrPath", "check_outputs", "make_folder"]

StrPath = str | os.PathLike[str]


def check_outputs(config_file: StrPath, outputs: Mapping[str, StrPath]) -> list[Path]:
    """Return the absolute paths of files that are to be written; nothing is made yet, see `make_folder`.

    They are absolute because the module may run in another working folder.

    Args:
        config_file: the configuration, which must not be overwritten.
        outputs: the files, by what they are.

    Raises:
        OutputPathError: a path is that of a folder, of the configuration or of another output, or nothing can be
            written where it is.
    """
    paths: dict[Path, str] = {}
    for what, given in outputs.items():
        text = os.fspath(given)
        path = Path(os.path.abspath(text))  # noqa: PTH100  Path.absolute keeps the ".."
        if text.endswith(("/", os.sep)) or path.is_dir():
            raise OutputPathError(f"{what}: {text!r} is a folder; give the name of a file in it")
        if path.resolve() == Path(config_file).resolve():
            raise OutputPathError(
                f"{what}: {text!r} is the configuration and would be overwritten; choose another name"
            )
        if path in paths:
            raise OutputPathError(f"{what}: {text!r} is the {paths[path]}, too; give each file a name of its own")
        paths[path] = what
    for path in paths:
        existing = next(parent for parent in path.parents if parent.exists())
        if not existing.is_dir():
            raise OutputPathError(
                f"the folder of {str(path)!r} cannot be made: {str(existing)!r} is a file; choose another one"
            )
        _require_writable(existing, path)
    return list(paths)


def make_folder(file: Path) -> None:
    """Make the folder of a file where it is missing.

    Raises:
        OutputPathError: it cannot be made, or nothing can be written into it.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputPathError(
            f"the folder of {str(file)!r} cannot be made: {error.strerror or error}; choose another one"
        ) from error
    _require_writable(file.parent, file)


def _require_writable(folder: Path, file: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise OutputPathError(f"nothing can be written into the folder of {str(file)!r}; choose another one")
