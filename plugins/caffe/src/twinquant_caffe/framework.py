"""Caffe, as the core uses it: this version tells Caffe nets from everything else, and says so."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from twinquant.errors import ModelFileError, UnsupportedModelError
from twinquant.outputs.artifact import Flavor
from twinquant.plan import LayerInfo, QuantPlan
from twinquant.registry import Framework, Match

__all__ = ["CaffeFramework"]

_SUFFIXES = frozenset({".prototxt", ".caffemodel"})
_HEAD_BYTES = 16 * 1024
_NET_HEAD = re.compile(rb"(?:^|[\s}])(?:layers?\s*\{|input\s*:)")


class CaffeFramework(Framework):
    """Recognizes Caffe nets: a prototxt, a pair of prototxt and caffemodel, or a pycaffe `Net`."""

    name = "caffe"

    def recognize(self, source: Any) -> Match:
        """Claim pycaffe's types by type, prototxt files that hold layers by content, and file names by name.

        A pair is a tuple of two paths, or one string with a comma between them.
        """
        if any(base.__module__.partition(".")[0] == "caffe" for base in type(source).__mro__):
            return Match.TYPE
        files = _files(source)
        if not files or not all(file.suffix.lower() in _SUFFIXES for file in files):
            return Match.NO
        return Match.CONTENT if any(_holds_layers(file) for file in files) else Match.NAME

    def load(self, source: Any) -> NoReturn:
        """Refuse every net: this version recognizes Caffe nets, and does not quantize them.

        Raises:
            ModelFileError: a file of the net does not exist.
            UnsupportedModelError: the net is there.
        """
        for file in _files(source):
            if not file.exists():
                raise ModelFileError(f"the Caffe file {str(file)!r} does not exist; check its path")
        self._refuse()

    def layers(self, graph: Any) -> Sequence[LayerInfo]:
        """Refuse, as `load` does.

        Raises:
            UnsupportedModelError: always.
        """
        self._refuse()

    def insert(self, graph: Any, plan: QuantPlan, flavor: Flavor) -> NoReturn:
        """Refuse, as `load` does.

        Raises:
            UnsupportedModelError: always.
        """
        self._refuse()

    def write(self, graph: Any, folder: Path, prefix: str, flavor: Flavor) -> Sequence[Path]:
        """Refuse, as `load` does.

        Raises:
            UnsupportedModelError: always.
        """
        self._refuse()

    def inputs(self, source: Any, graph: Any) -> Sequence[Path]:
        """List the prototxt and the caffemodel."""
        del graph
        return _files(source)

    def _refuse(self) -> NoReturn:
        raise UnsupportedModelError(
            "this is a Caffe net, and this version of twinquant-caffe only recognizes those: it cannot quantize them "
            "yet. Convert the net to ONNX and its record's layer names with it, then save it with the onnx plugin "
            '(pip install "twinquant[onnx]")'
        )


def _files(source: Any) -> tuple[Path, ...]:
    """Return the files that a source names: one path, a pair of paths, or two paths with a comma between them."""
    if isinstance(source, str):
        parts = tuple(Path(part.strip()) for part in source.split(","))
        if len(parts) == 2 and all(part.suffix.lower() in _SUFFIXES for part in parts):
            return parts
    if isinstance(source, (str, os.PathLike)):
        return (Path(source),)
    if isinstance(source, (tuple, list)) and all(isinstance(part, (str, os.PathLike)) for part in source):
        return tuple(Path(part) for part in source)
    return ()


def _holds_layers(file: Path) -> bool:
    """Look for a layer or an input in the head of a prototxt."""
    if file.suffix.lower() != ".prototxt":
        return False
    try:
        with file.open("rb") as stream:
            return _NET_HEAD.search(stream.read(_HEAD_BYTES)) is not None
    except (OSError, ValueError):  # ValueError: the path holds a null byte
        return False
