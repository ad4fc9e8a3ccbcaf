"""A framework of five lines of text per model, so that the commands are tested without any plugin installed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import twinquant.cli.demo
import twinquant.registry.dispatch
from twinquant.cli import main
from twinquant.errors import ModelFileError
from twinquant.plan import LayerInfo, LayerKind
from twinquant.registry import Capability, Framework, Match, Registry
from twinquant.verification import LayerVerdict, VerifyReport

RECORD = """
record { key: "first" value { scale_d: 0.5 offset_d: -3 scale_w: 0.25 scale_w: 0.125 offset_w: 0 offset_w: 0 } }
record { key: "second" value { scale_d: 0.5 offset_d: -3 scale_w: 2 offset_w: 0 act_type: "INT16" wts_type: "INT6" } }
"""


class PaperFramework(Framework):
    """Models are JSON files `*.paper`; a twin that holds the word "wrong" disagrees."""

    name = "paper"
    capabilities = frozenset(Capability)

    def recognize(self, source):
        return Match.NAME if str(source).endswith(".paper") else Match.NO

    def load(self, source):
        if not Path(source).exists():
            raise ModelFileError(f"{str(source)!r}: there is no such file; check the path")
        return json.loads(Path(source).read_text())

    def layers(self, graph):
        return [
            LayerInfo("first", "Conv", LayerKind.CONV, activation="x", out_channels=2, in_channels=1, has_bias=True),
            LayerInfo("bend", "Relu"),
            LayerInfo("second", "Gemm", LayerKind.GEMM, activation="y"),
            LayerInfo("third", "Gemm", LayerKind.GEMM, refusal="its weight is not constant", activation="z"),
            LayerInfo("fourth", "Gemm", LayerKind.GEMM, activation="z"),
        ]

    def insert(self, graph, plan, flavor):
        return {"layers": [layer.name for layer in plan], "flavor": flavor.value}

    def write(self, graph, folder, prefix, flavor):
        path = folder / f"{prefix}_{flavor.value}.paper"
        path.write_text(json.dumps(graph))
        return [path]

    def verify(self, fake_quant, deploy, data):
        agree = "wrong" not in deploy.read_text()
        problems = () if agree else ("weight: 1 of 6 values differs",)
        outputs = (LayerVerdict("y", "output", True, free_running=0.5),)
        notes = ("an accumulator leaves int32",) if "wide" in deploy.read_text() else ()
        return VerifyReport((LayerVerdict("first", "Conv", agree, problems, 0.25, 0.125, 0.0, notes=notes),), outputs)

    def check(self, deploy):
        return ["layer 'first' has no name"] if "nameless" in deploy.read_text() else []

    def inspect(self, source):
        return [("nodes", "5"), ("bytes", str(source.stat().st_size))]

    def demo(self, folder):
        folder.mkdir(parents=True)
        return [("algorithm", "accuracy", "agree"), ("minmax", "99.00%", "yes")]


@pytest.fixture
def registry(monkeypatch):
    """Make the paper framework the only one there is."""
    plugins = Registry()
    plugins.register(PaperFramework())
    for module in (twinquant.cli.demo, twinquant.registry.dispatch):
        monkeypatch.setattr(module, "installed_registry", lambda: plugins)
    return plugins


@pytest.fixture
def model(tmp_path, registry):
    path = tmp_path / "net.paper"
    path.write_text("{}")
    return path


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "net.txt"
    path.write_text(RECORD)
    return path


@pytest.fixture
def run(capsys):
    """Run a command and return (exit code, stdout, stderr)."""

    def run_command(*argv):
        code = main([str(argument) for argument in argv])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run_command
