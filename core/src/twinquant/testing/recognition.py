# A test's name is its sentence, so the tests of a contract have no docstrings:
# ruff: noqa: D102
"""Contract tests: who the framework is, and which sources it claims."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from twinquant.errors import CapabilityError, ModelError, ModelFileError
from twinquant.registry import Capability, Framework, Match, State, plugin_states, select_framework
from twinquant.testing.subject import Subject, files_of, relocated

__all__ = ["RecognitionContract"]

_CORE_MODULES = frozenset({"twinquant", "numpy", "pluggy", "google"})

_LIST_IMPORTS = """
import json, sys
from importlib.metadata import entry_points
from twinquant.registry import ENTRY_POINT_GROUP, load_registry
before = set(sys.modules)
name, *sources = json.loads(sys.argv[1])
registry = load_registry(entry_points(group=ENTRY_POINT_GROUP, name=name))
for source in sources:
    registry.frameworks[name].recognize(tuple(source) if isinstance(source, list) else source)
print(json.dumps(sorted({module.partition(".")[0] for module in set(sys.modules) - before})))
"""


class RecognitionContract(Subject):
    """The framework claims what is its own, cheaply, and nothing else."""

    def test_the_installed_plugin_brings_this_framework(self) -> None:
        framework = self.framework()
        states = {state.name: state for state in plugin_states()}
        assert framework.name in states, "install the plugin: its entry point is not found"
        assert states[framework.name].state is State.OK, states[framework.name].reason
        assert type(select_framework(None, framework.name)) is type(framework)

    def test_its_own_source_is_claimed(self, source: Any) -> None:
        assert self.framework().recognize(source) is not Match.NO

    def test_its_own_source_is_dispatched_to_it(self, source: Any) -> None:
        assert select_framework(source).name == self.framework().name

    def test_strangers_are_left_alone(self, tmp_path: Path) -> None:
        framework = self.framework()
        claimed = [stranger for stranger in self.strangers(tmp_path) if framework.recognize(stranger) is not Match.NO]
        assert claimed == []

    def test_recognizing_imports_nothing_heavy(self, source: Any, tmp_path: Path) -> None:
        sources = [str(tmp_path / "other.bin"), *([_as_text(source)] if files_of(source) else [])]
        command = [sys.executable, "-c", _LIST_IMPORTS, json.dumps([self.framework().name, *sources])]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        assert run.returncode == 0, run.stderr
        own = type(self.framework()).__module__.partition(".")[0]
        allowed = _CORE_MODULES | self.light_modules | {own}
        heavy = [name for name in json.loads(run.stdout) if name not in allowed and not _is_standard(name)]
        assert heavy == []

    def test_recognizing_changes_neither_the_source_nor_the_framework(self, source: Any) -> None:
        framework = self.framework()
        before, state = self.fingerprint(source), dict(vars(framework))
        framework.recognize(source)
        framework.load(source)
        assert self.fingerprint(source) == before
        assert dict(vars(framework)) == state

    def test_a_missing_file_is_a_model_file_error(self, source: Any, tmp_path: Path) -> None:
        if not files_of(source):
            pytest.skip("the source is an object")
        missing = relocated(source, lambda path: tmp_path / "nowhere" / path.name)
        with pytest.raises(ModelFileError):
            self.framework().load(missing)

    @pytest.mark.parametrize("damage", ["empty", "noise", "cut"])
    def test_a_damaged_file_is_a_model_error(self, source: Any, damage: str, tmp_path: Path) -> None:
        if not files_of(source):
            pytest.skip("the source is an object")

        def damaged(path: Path) -> Path:
            content = path.read_bytes()
            damages = {"empty": b"", "noise": b"\xff\x00noise" * 50, "cut": content[: len(content) // 2]}
            copy = tmp_path / path.name
            copy.write_bytes(damages[damage])
            return copy

        broken = relocated(source, damaged)
        assert self.framework().recognize(broken) in Match
        with pytest.raises(ModelError):
            self.framework().load(broken)

    def test_its_inputs_are_the_files_of_the_source(self, source: Any) -> None:
        inputs = {Path(path).resolve() for path in self.framework().inputs(source, self.graph(source))}
        assert {path.resolve() for path in files_of(source)} <= inputs
        assert all(path.is_file() for path in inputs)

    @pytest.mark.parametrize("capability", list(Capability), ids=[capability.value for capability in Capability])
    def test_a_capability_is_declared_exactly_if_its_method_is_there(self, capability: Capability) -> None:
        kind = type(self.framework())
        implemented = getattr(kind, capability.value) is not getattr(Framework, capability.value)
        assert (capability in kind.capabilities) == implemented

    def test_a_capability_that_is_not_declared_is_a_capability_error(self, tmp_path: Path) -> None:
        framework = self.framework()
        calls: dict[Capability, Callable[[], object]] = {
            Capability.CALIBRATE: lambda: framework.activations(None, ()),
            Capability.VERIFY: lambda: framework.verify(tmp_path / "a", tmp_path / "b", None),
            Capability.CHECK: lambda: framework.check(tmp_path / "a"),
            Capability.INSPECT: lambda: framework.inspect(tmp_path / "a"),
            Capability.DEMO: lambda: framework.demo(tmp_path),
        }
        for capability in calls.keys() - framework.capabilities:
            with pytest.raises(CapabilityError):
                calls[capability]()


def _as_text(source: Any) -> Any:
    """Return a source of paths in the form that JSON can carry."""
    return [os.fspath(part) for part in source] if isinstance(source, (tuple, list)) else os.fspath(source)


def _is_standard(module: str) -> bool:
    return module in sys.stdlib_module_names or module.startswith("_")
