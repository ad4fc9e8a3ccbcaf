# A test's name is its sentence, so the tests of a contract have no docstrings:
# ruff: noqa: D102
"""Contract tests: layers are described, plans lowered and twins written as the core relies on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from twinquant.outputs import Flavor
from twinquant.plan import LayerInfo, QuantPlan
from twinquant.records import RecordSet
from twinquant.testing.subject import Subject, contents, each_flavor

__all__ = ["LoweringContract"]

_ELEMENT_TYPES = ("float32", "float16", "bfloat16", "float64")


class LoweringContract(Subject):
    """The plan reaches the files, all of it, in the same way each time, and nothing else changes."""

    def quantizable(self, graph: Any) -> list[LayerInfo]:
        """Return the layers that a record may name."""
        return [layer for layer in self.framework().layers(graph) if layer.kind is not None and layer.refusal is None]

    def test_the_model_under_test_has_two_layers(self) -> None:
        assert len(self.layer_names) >= 2, "the contract needs a model with at least two quantizable layers"

    def test_quantizable_layers_come_in_graph_order(self, source: Any) -> None:
        assert tuple(layer.name for layer in self.quantizable(self.graph(source))) == tuple(self.layer_names)

    def test_quantizable_layers_are_described_in_full(self, source: Any) -> None:
        for layer in self.quantizable(self.graph(source)):
            assert layer.op_type and layer.activation, layer
            assert layer.element_type in _ELEMENT_TYPES, layer
            assert layer.out_channels is None or layer.out_channels > 0, layer
            assert layer.in_channels is None or layer.in_channels > 0, layer

    def test_every_node_has_a_name_that_is_unique_or_not_quantizable(self, source: Any) -> None:
        graph = self.graph(source)
        names = [layer.name for layer in self.framework().layers(graph)]
        assert all(names)
        assert [layer.name for layer in self.quantizable(graph) if names.count(layer.name) > 1] == []

    def test_describing_layers_twice_gives_the_same(self, source: Any) -> None:
        graph = self.graph(source)
        assert list(self.framework().layers(graph)) == list(self.framework().layers(graph))

    @each_flavor
    def test_written_files_lie_in_the_folder_the_model_first(self, source: Any, flavor: Flavor, tmp_path: Path) -> None:
        graph = self.graph(source)
        folder = tmp_path / "out"
        files = self.write(graph, self.plan(graph), folder, flavor)
        assert files
        assert len(set(files)) == len(files)
        assert {file.resolve() for file in files} == {folder.resolve() / name for name in contents(folder)}
        assert flavor.value in files[0].name

    @each_flavor
    def test_the_model_file_is_named_after_the_prefix(self, source: Any, flavor: Flavor, tmp_path: Path) -> None:
        graph = self.graph(source)
        plan = self.plan(graph)
        (with_prefix, *_) = self.write(graph, plan, tmp_path / "with", flavor, prefix="net")
        (without_prefix, *_) = self.write(graph, plan, tmp_path / "without", flavor, prefix="")
        assert with_prefix.name == f"net_{without_prefix.name}"

    def test_the_twins_share_no_file_name(self, source: Any, tmp_path: Path) -> None:
        graph = self.graph(source)
        plan = self.plan(graph)
        names = [{file.name for file in self.write(graph, plan, tmp_path / flavor, flavor)} for flavor in Flavor]
        assert names[0].isdisjoint(names[1])

    @each_flavor
    def test_the_same_input_gives_the_same_bytes(self, source: Any, flavor: Flavor, tmp_path: Path) -> None:
        for folder in ("first", "second"):
            graph = self.graph(source)
            self.write(graph, self.plan(graph), tmp_path / folder, flavor)
        assert contents(tmp_path / "first") == contents(tmp_path / "second")

    @each_flavor
    def test_one_graph_may_be_used_again(self, source: Any, flavor: Flavor, tmp_path: Path) -> None:
        graph = self.graph(source)
        plan = self.plan(graph)
        layers = list(self.framework().layers(graph))
        self.write(graph, plan, tmp_path / "fresh", flavor)
        for other in Flavor:
            self.write(graph, plan, tmp_path / "others", other)
        self.write(graph, plan, tmp_path / "used", flavor)
        assert contents(tmp_path / "used") == contents(tmp_path / "fresh")
        assert list(self.framework().layers(graph)) == layers

    @each_flavor
    def test_an_inserted_graph_is_written_twice_alike(self, source: Any, flavor: Flavor, tmp_path: Path) -> None:
        graph = self.graph(source)
        framework = self.framework()
        inserted = framework.insert(graph, self.plan(graph), flavor)
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            framework.write(inserted, tmp_path / name, "m", flavor)
        assert contents(tmp_path / "first") == contents(tmp_path / "second")

    @each_flavor
    def test_the_source_stays_as_it_was(self, source: Any, flavor: Flavor, tmp_path: Path) -> None:
        before = self.fingerprint(source)
        graph = self.graph(source)
        self.write(graph, self.plan(graph), tmp_path / "out", flavor)
        assert self.fingerprint(source) == before

    @each_flavor
    def test_a_plan_without_layers_quantizes_nothing(self, source: Any, flavor: Flavor, tmp_path: Path) -> None:
        graph = self.graph(source)
        empty = QuantPlan(self.framework().name, ())
        self.write(graph, empty, tmp_path / "empty", flavor)
        self.write(graph, self.plan(graph), tmp_path / "full", flavor)
        assert contents(tmp_path / "empty") != contents(tmp_path / "full")

    @each_flavor
    def test_every_layer_of_the_plan_reaches_the_files(self, source: Any, flavor: Flavor, tmp_path: Path) -> None:
        graph = self.graph(source)
        records = self.records(self.framework().layers(graph)).records
        written = []
        for name in (None, *self.layer_names):
            kept = RecordSet({key: record for key, record in records.items() if key != name})
            folder = tmp_path / f"without {name and self.layer_names.index(name)}"
            self.write(graph, self.plan(graph, kept), folder, flavor)
            written.append(contents(folder))
        assert all(written[i] != written[j] for i in range(len(written)) for j in range(i))

    @each_flavor
    def test_every_activation_factor_reaches_the_files(self, source: Any, flavor: Flavor, tmp_path: Path) -> None:
        graph = self.graph(source)
        records = self.records(self.framework().layers(graph)).records
        name = self.layer_names[-1]
        last = records[name]
        changes = {"as is": last, "scale": replace(last, scale_d=0.5), "offset": replace(last, offset_d=7)}
        for folder, record in changes.items():
            self.write(graph, self.plan(graph, RecordSet({**records, name: record})), tmp_path / folder, flavor)
        as_is = contents(tmp_path / "as is")
        assert [change for change in ("scale", "offset") if contents(tmp_path / change) == as_is] == []

    @each_flavor
    def test_every_weight_factor_reaches_the_files(self, source: Any, flavor: Flavor, tmp_path: Path) -> None:
        graph = self.graph(source)
        plan = self.plan(graph)
        records = self.records(self.framework().layers(graph)).records
        self.write(graph, plan, tmp_path / "as is", flavor)
        lost = []
        for name in [layer.name for layer in plan if layer.weight is not None]:
            changed = replace(records[name], scale_w=records[name].scale_w * np.float32(1.5))
            folder = tmp_path / f"changed {self.layer_names.index(name)}"
            self.write(graph, self.plan(graph, RecordSet({**records, name: changed})), folder, flavor)
            if contents(folder) == contents(tmp_path / "as is"):
                lost.append(name)
        assert lost == []

    def test_companions_are_files_of_the_same_write(self, source: Any, tmp_path: Path) -> None:
        graph = self.graph(source)
        for flavor in Flavor:
            files = self.write(graph, self.plan(graph), tmp_path / "out", flavor)
            assert set(self.framework().companions(files[0])) <= {file.name for file in files[1:]}

    def test_a_strange_file_has_no_companions(self, tmp_path: Path) -> None:
        stranger = tmp_path / "notes.txt"
        stranger.write_text("not a model\n", "utf-8")
        assert list(self.framework().companions(stranger)) == []
