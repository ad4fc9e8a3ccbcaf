"""Finding the files of a net: what a user gives names one or both."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from twinquant.errors import ArgumentError, ModelFileError

__all__ = ["PROTOTXT", "SUFFIXES", "WEIGHTS", "find_pair", "partner_paths", "source_files"]

PROTOTXT, WEIGHTS = ".prototxt", ".caffemodel"
SUFFIXES = frozenset({PROTOTXT, WEIGHTS})

_PARTNER = {PROTOTXT: WEIGHTS, WEIGHTS: PROTOTXT}
_ENDINGS_OF_TWINS = {PROTOTXT: "_model", WEIGHTS: "_weights"}
_MOST_NAMES = 5


def source_files(source: Any) -> tuple[Path, ...]:
    """Return the files that a source names: one path, a pair of paths, or two with a comma between; none for others.

    Nothing is looked up.
    """
    if isinstance(source, str):
        parts = tuple(Path(part.strip()) for part in source.split(","))
        if len(parts) == 2 and all(part.suffix.lower() in SUFFIXES for part in parts):
            return parts
    if isinstance(source, (str, os.PathLike)):
        return (Path(source),)
    if isinstance(source, (tuple, list)) and all(isinstance(part, (str, os.PathLike)) for part in source):
        return tuple(Path(part) for part in source)
    return ()


def find_pair(source: Any) -> tuple[Path, Path]:
    """Return the prototxt and the caffemodel of a source; of one file alone, its partner.

    Raises:
        ArgumentError: the source is neither a file nor a pair.
        ModelFileError: a file, or the partner, is not there.
    """
    files = source_files(source)
    if len(files) == 1:
        files = _with_partner(files[0])
    if len(files) != 2:
        raise ArgumentError(f"a Caffe net is a pair of paths, (prototxt, caffemodel), or one of them; got {source!r}")
    if files[0].suffix.lower() == WEIGHTS and files[1].suffix.lower() != WEIGHTS:
        files = files[::-1]
    for path in files:
        _require_file(path)
    return files[0], files[1]


def partner_paths(path: Path) -> Sequence[Path]:
    """Return where the caffemodel of a prototxt may lie, or the prototxt of a caffemodel, the best place first.

    The stem is the same, or those of a twin: `<prefix>_deploy_model.prototxt` and `<prefix>_deploy_weights.caffemodel`.
    """
    suffix = path.suffix.lower()
    other, ending = _PARTNER[suffix], _ENDINGS_OF_TWINS[suffix]
    places = [path.with_suffix(other)]
    if path.stem.endswith(ending):
        places.insert(0, path.with_name(path.stem.removesuffix(ending) + _ENDINGS_OF_TWINS[other] + other))
    return places


def _with_partner(path: Path) -> tuple[Path, ...]:
    suffix = path.suffix.lower()
    if suffix not in _PARTNER:
        raise ArgumentError(
            f"{str(path)!r} is neither a {PROTOTXT} nor a {WEIGHTS} file; give the net as a pair of paths"
        )
    _require_file(path)
    partners = partner_paths(path)
    partner = next((partner for partner in partners if partner.is_file()), partners[-1])
    if not partner.is_file():
        kind = "prototxt" if suffix == WEIGHTS else "caffemodel"
        others = sorted(entry.name for entry in path.parent.glob(f"*{partner.suffix}"))[:_MOST_NAMES]
        nearby = f" In its folder: {', '.join(others)}." if others else ""
        raise ModelFileError(
            f"{str(path)!r} came without its {kind}, and {str(partner)!r} does not exist.{nearby} Give both: "
            "(prototxt, caffemodel), or on the command line net.prototxt,net.caffemodel"
        )
    return path, partner


def _require_file(path: Path) -> None:
    try:
        found, folder = path.exists(), path.is_dir()
    except (OSError, ValueError) as error:
        raise ModelFileError(f"the Caffe file {str(path)!r} cannot be read: {error}") from error
    if not found:
        raise ModelFileError(f"the Caffe file {str(path)!r} does not exist; check its path")
    if folder:
        raise ModelFileError(f"the Caffe file {str(path)!r} is a folder; give the path of the file in it")
