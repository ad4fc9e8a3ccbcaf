# A test's name is its sentence, so the tests of a contract have no docstrings:
# ruff: noqa: D102
"""Conformance tests of what calibration needs; skipped for a framework that does not calibrate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import twinquant
from twinquant.plan import LayerInfo, build_plan
from twinquant.plan.rules import KIND_RULES
from twinquant.registry import Capability, ModelInput, Tap
from twinquant.testing.subject import Subject, files_of

__all__ = ["CalibrationContract"]

_OPEN_LENGTHS = (2, 8)
"""What an axis of open length is given: the first one, and the others."""


class CalibrationContract(Subject):
    """Running a float model, and reading and changing its weights."""

    @pytest.fixture
    def float_graph(self, source: Any) -> Any:
        """The loaded model of a framework that calibrates."""
        if Capability.CALIBRATE not in self.framework().capabilities:
            pytest.skip("the framework does not calibrate")
        return self.graph(source)

    def test_taps_come_in_the_order_they_were_asked_for(self, float_graph: Any) -> None:
        taps = [Tap(name) for name in self.layer_names]
        for order in (taps, taps[::-1]):
            seen = self._values(float_graph, order)
            assert [tap for tap, _ in seen] == order
            assert all(array.size for _, arrays in seen for array in arrays)

    def test_the_same_batch_gives_the_same_bits(self, float_graph: Any) -> None:
        taps = [Tap(name) for name in self.layer_names]
        one, other = self._values(float_graph, taps), self._values(float_graph, taps)
        for (_, arrays), (_, again) in zip(one, other, strict=True):
            assert [array.tobytes() for array in arrays] == [array.tobytes() for array in again]

    def test_weights_have_the_channels_that_the_layers_declare(self, float_graph: Any) -> None:
        for layer in self._weighted(float_graph):
            weight = self.framework().weight(float_graph, layer.name)
            shape = weight.values.shape
            assert len(shape) == 3
            outputs = shape[0] if weight.out_axis == 0 else shape[1] * weight.groups
            inputs = shape[0] if weight.out_axis == 1 else shape[1] * weight.groups
            assert layer.out_channels in (None, outputs)
            assert layer.in_channels in (None, inputs)

    def test_balancing_multiplies_weights_and_leaves_the_given_graph_alone(self, float_graph: Any) -> None:
        framework = self.framework()
        for layer in self._weighted(float_graph):
            assert layer.kind is not None
            if not KIND_RULES[layer.kind].balanced or layer.in_channels is None:
                continue
            before = _whole(framework.weight(float_graph, layer.name).values)
            factors = np.full(layer.in_channels, 2, np.float32)  # a power of two: exact in every float type
            balanced = framework.balance(float_graph, {layer.name: factors})
            np.testing.assert_array_equal(_whole(framework.weight(balanced, layer.name).values), 2 * before)
            np.testing.assert_array_equal(_whole(framework.weight(float_graph, layer.name).values), before)

    def test_fusing_keeps_the_quantizable_layers(self, float_graph: Any) -> None:
        framework = self.framework()
        fused, _ = framework.fuse(float_graph, ())
        names = [layer.name for layer in framework.layers(fused) if layer.kind is not None and layer.refusal is None]
        assert names == list(self.layer_names)

    def test_a_float_graph_that_is_written_can_be_loaded_again(
        self, float_graph: Any, source: Any, tmp_path: Path
    ) -> None:
        framework = self.framework()
        folder = tmp_path / "written"
        folder.mkdir()
        name = "again" + "".join(path.suffix for path in files_of(source)[:1])
        files = framework.write_float(float_graph, folder, name)
        assert files[0] == folder / name
        assert sorted(files) == sorted(folder.iterdir())
        again = framework.load(files[0])
        assert [layer.name for layer in framework.layers(again)] == [
            layer.name for layer in framework.layers(float_graph)
        ]

    def test_a_calibrated_record_fits_the_model(self, float_graph: Any, source: Any, tmp_path: Path) -> None:
        framework = self.framework()
        batch = _batch(framework.model_inputs(float_graph))
        records = twinquant.calibrate(
            source,
            [batch],
            tmp_path / "record.txt",
            batch_num=1,
            config={"do_fusion": False},
            framework=framework.name,
        )
        plan = build_plan(records, framework.layers(float_graph), framework.name)
        assert [layer.name for layer in plan] == list(self.layer_names)

    def _values(self, graph: Any, taps: list[Tap]) -> list[tuple[Tap, list[npt.NDArray[Any]]]]:
        framework = self.framework()
        run = framework.activations(graph, taps, threads=1)
        feeds = _batch(framework.model_inputs(graph))
        return [(tap, [np.array(array) for array in arrays]) for tap, arrays in run(feeds)]

    def _weighted(self, graph: Any) -> list[LayerInfo]:
        return [
            layer
            for layer in self.framework().layers(graph)
            if layer.name in self.layer_names and layer.kind is not None and KIND_RULES[layer.kind].weighted
        ]


def _batch(inputs: Any) -> dict[str, npt.NDArray[Any]]:
    """Make up a seeded batch."""
    random = np.random.default_rng(2)
    return {wanted.name: _array(random, wanted) for wanted in inputs}


def _array(random: np.random.Generator, wanted: ModelInput) -> npt.NDArray[Any]:
    first, other = _OPEN_LENGTHS
    shape = [
        length if isinstance(length, int) else (other if axis else first)
        for axis, length in enumerate(wanted.shape or (None, None))
    ]
    values = random.standard_normal(shape) if np.dtype(wanted.dtype).kind not in "iub" else random.integers(0, 2, shape)
    return np.asarray(values).astype(wanted.dtype)


def _whole(values: Any) -> npt.NDArray[Any]:
    return np.array(values[tuple(slice(0, length) for length in values.shape)])
