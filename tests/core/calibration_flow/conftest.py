"""A framework of one fully connected layer in NumPy, so that the flow is tested without any real one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twinquant.outputs import Flavor
from twinquant.plan import LayerInfo, LayerKind, QuantPlan
from twinquant.registry import Capability, Framework, LayerWeight, Match, ModelInput

WEIGHT = np.array([[1.0, -2.0], [0.5, 0.25], [-0.125, 4.0]], np.float32)
"""(in, out) of both layers' weights."""


class ToyFramework(Framework):
    """Its model is `y = x @ w` twice on the same x, layers 'a' and 'b'; layer 'a' can be normalized by 2."""

    name = "toy"
    capabilities = frozenset({Capability.CALIBRATE})

    def __init__(self) -> None:
        self.runs: list[tuple[str, ...]] = []
        self.saved: list[str] = []

    def recognize(self, source: Any) -> Match:
        return Match.NAME

    def load(self, source: Any) -> Mapping[str, np.ndarray]:
        return {"a": WEIGHT, "b": WEIGHT}

    def layers(self, graph: Any) -> Sequence[LayerInfo]:
        shared = {"activation": "x", "in_channels": 3, "weight_shape": (3, 2)}
        return [
            LayerInfo("a", "Dense", LayerKind.GEMM, **shared),
            LayerInfo("relu", "Relu"),
            LayerInfo("b", "Dense", LayerKind.GEMM, **shared),
        ]

    def insert(self, graph: Any, plan: QuantPlan, flavor: Flavor) -> Any:
        return {name: weight.tolist() for name, weight in graph.items()}

    def write(self, graph: Any, folder: Path, prefix: str, flavor: Flavor) -> Sequence[Path]:
        path = folder / f"{prefix}{'_' if prefix else ''}{flavor.value}_model.toy"
        path.write_text(json.dumps(graph))
        return [path]

    def activations(self, graph, taps, *, threads=None):
        self.runs.append(tuple(tap.layer for tap in taps))

        def run(feeds):
            for tap in taps:
                yield tap, [feeds["x"]]

        return run

    def model_inputs(self, graph):
        return [ModelInput("x", "float32", (None, 3))]

    def fuse(self, graph, skip):
        if "a" in skip:
            return graph, ()
        return {**graph, "a": graph["a"] * 2}, ("a",)

    def weight(self, graph, layer, *, recurrence=False):
        return LayerWeight(graph[layer].reshape(3, 2, 1), out_axis=1)

    def balance(self, graph, factors):
        return {name: w * factors[name][:, None] if name in factors else w for name, w in graph.items()}

    def write_float(self, graph, folder, name):
        (folder / name).write_text(json.dumps({layer: weight.tolist() for layer, weight in graph.items()}))
        return [folder / name]


@pytest.fixture
def toy(monkeypatch):
    framework = ToyFramework()
    monkeypatch.setattr("twinquant.calibration_api.select_framework", lambda _source, _name: framework)
    monkeypatch.setattr("twinquant.calibration_api.notify_saved", lambda *_: framework.saved.append("observers"))
    return framework


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "net.toy"
    path.write_text("the net")
    return path


@pytest.fixture
def batches():
    """Four batches of normal numbers, ten samples each."""
    random = np.random.default_rng(7)
    return [random.standard_normal((10, 3)).astype(np.float32) for _ in range(4)]
