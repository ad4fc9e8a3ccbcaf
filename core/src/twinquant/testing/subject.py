"""What the author of a plugin tells the conformance tests."""

from __future__ import annotations

import os
import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from twinquant.outputs import Flavor
from twinquant.plan import LayerInfo, QuantPlan, build_plan
from twinquant.records import RecordSet
from twinquant.registry import Framework
from twinquant.testing.factors import records_for

__all__ = ["Subject", "contents", "each_flavor", "files_of", "relocated"]

each_flavor = pytest.mark.parametrize("flavor", tuple(Flavor), ids=[flavor.value for flavor in Flavor])
"""Runs a test once per twin."""


class Subject(ABC):
    """A framework under test and a model for it. Everything that is not abstract has a default that usually fits."""

    layer_names: ClassVar[tuple[str, ...]]
    """Names of the quantizable layers of the model of `make_source`, in graph order; at least two."""

    light_modules: ClassVar[frozenset[str]] = frozenset()
    """Top-level modules that `recognize` may import besides the plugin's own, the core's and the standard library."""

    @abstractmethod
    def framework(self) -> Framework:
        """Return the framework under test."""

    @abstractmethod
    def make_source(self, folder: Path) -> Any:
        """Build a tiny model with at least two quantizable layers, always the same one.

        Args:
            folder: an empty folder for its files.

        Returns:
            what a user would pass as the graph: a path, a tuple of paths or an object.
        """

    def records(self, layers: Sequence[LayerInfo]) -> RecordSet:
        """Return a record for every quantizable layer of the model."""
        return records_for(layers, self.framework().name)

    def strangers(self, folder: Path) -> Sequence[Any]:
        """Return sources of nobody's, which the framework must not claim."""
        text, binary = folder / "notes.txt", folder / "noise.bin"
        text.write_text("not a model\n", "utf-8")
        binary.write_bytes(bytes(range(256)))
        missing = folder / "missing.txt"
        return [
            text,
            str(text),
            binary,
            missing,
            folder,
            "",
            "a,b",
            "\0",
            (),
            (text, binary),
            None,
            3,
            object(),
            b"",
            {},
        ]

    def fingerprint(self, source: Any) -> object:
        """Return a value that changes when the source does."""
        files = files_of(source)
        return {file: file.read_bytes() for file in files} if files else pickle.dumps(source)

    @pytest.fixture
    def source(self, tmp_path: Path) -> Any:
        """The model under test, in a folder of its own."""
        folder = tmp_path / "source"
        folder.mkdir()
        return self.make_source(folder)

    def graph(self, source: Any) -> Any:
        """Load the model."""
        return self.framework().load(source)

    def plan(self, graph: Any, records: RecordSet | None = None) -> QuantPlan:
        """Plan all its quantizable layers, or those that the records name."""
        layers = self.framework().layers(graph)
        return build_plan(self.records(layers) if records is None else records, layers, self.framework().name)

    def write(self, graph: Any, plan: QuantPlan, folder: Path, flavor: Flavor, prefix: str = "m") -> list[Path]:
        """Lower the plan for one twin and write it into a folder, which is created."""
        folder.mkdir(parents=True, exist_ok=True)
        framework = self.framework()
        return list(framework.write(framework.insert(graph, plan, flavor), folder, prefix, flavor))


def files_of(source: Any) -> tuple[Path, ...]:
    """Return the files that a source consists of; none for an object."""
    parts = source if isinstance(source, (tuple, list)) else (source,)
    return tuple(Path(part) for part in parts if isinstance(part, (str, os.PathLike)))


def relocated(source: Any, move: Callable[[Path], Path]) -> Any:
    """Return a source of the same form with every path replaced."""
    if isinstance(source, (tuple, list)):
        return type(source)(relocated(part, move) for part in source)
    return type(source)(move(Path(source)))


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder by its relative name; {} for a folder that does not exist."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }
