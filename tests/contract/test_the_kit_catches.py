"""Every rule of the contract fails for a plugin that breaks it: the toy plugin, with one fault at a time."""

import inspect
import itertools
import json
from dataclasses import replace

import pytest

from twinquant.outputs import Flavor
from twinquant.plan import QuantPlan
from twinquant.registry import Capability, Match
from twinquant.testing import FrameworkContract
from twinquant.verification import VerifyReport
from twinquant_toy.framework import ToyFramework

COUNTER = itertools.count()

CAUGHT = (AssertionError, pytest.fail.Exception, OSError, ValueError)
"""What a failing test of the contract raises: its own verdict, or an error that should have been a TwinQuantError."""


class ClaimsEverything(ToyFramework):
    def recognize(self, source):
        return Match.NAME


class ClaimsNothing(ToyFramework):
    def recognize(self, source):
        return Match.NO


class RemembersWhatItSaw(ToyFramework):
    def recognize(self, source):
        self.last = source
        return super().recognize(source)


class RaisesRawErrors(ToyFramework):
    def load(self, source):
        return json.loads(source.read_text())["layers"]


class ForgetsItsInputs(ToyFramework):
    def inputs(self, source, graph):
        return ()


class HidesACapability(ToyFramework):
    def verify(self, fake_quant, deploy, data):
        return None


class BoastsACapability(ToyFramework):
    capabilities = frozenset({Capability.INSPECT})


class ReversesTheLayers(ToyFramework):
    def layers(self, graph):
        return super().layers(graph)[::-1]


class LeavesLayersNameless(ToyFramework):
    def layers(self, graph):
        return [*super().layers(graph), replace(super().layers(graph)[0], name="", kind=None)]


class IgnoresThePlan(ToyFramework):
    def insert(self, graph, plan, flavor):
        return graph


class LosesTheLastLayer(ToyFramework):
    def insert(self, graph, plan, flavor):
        return super().insert(graph, QuantPlan("toy", plan.layers[:-1]), flavor)


class LosesTheOffset(ToyFramework):
    def insert(self, graph, plan, flavor):
        layers = super().insert(graph, plan, flavor)
        return [{**x, "quant": {**x["quant"], "offset": 0}} if "quant" in x else x for x in layers]


class LosesTheWeightScale(ToyFramework):
    def insert(self, graph, plan, flavor):
        lost = {"weight": 0, "bias": 0, "dequant": 0, "multiply_by": 0}
        return [{**layer, **lost} if "quant" in layer else layer for layer in super().insert(graph, plan, flavor)]


class EditsTheGraph(ToyFramework):
    def insert(self, graph, plan, flavor):
        for layer in graph:
            layer["weight"] = layer["weight"] * 0.5
        return super().insert(graph, plan, flavor)


class WritesATimestamp(ToyFramework):
    def write(self, graph, folder, prefix, flavor):
        return super().write([*graph, next(COUNTER)], folder, prefix, flavor)


class AlwaysWritesAnUnderscore(ToyFramework):
    def write(self, graph, folder, prefix, flavor):
        return super().write(graph, folder, prefix or "model", flavor)


class ForgetsTheFlavor(ToyFramework):
    def write(self, graph, folder, prefix, flavor):
        return super().write(graph, folder, prefix, Flavor.DEPLOY)


class LeavesAScratchFile(ToyFramework):
    def write(self, graph, folder, prefix, flavor):
        (folder / "scratch").write_text("left behind")
        return super().write(graph, folder, prefix, flavor)


class ClaimsForeignCompanions(ToyFramework):
    def companions(self, model):
        return [path.name for path in model.parent.iterdir()]


class SpoilsItsSource(ToyFramework):
    def load(self, source):
        graph = super().load(source)
        with source.open("a") as stream:
            stream.write(" ")
        return graph


FAULTS = [
    (ClaimsEverything, "test_strangers_are_left_alone"),
    (ClaimsNothing, "test_its_own_source_is_claimed"),
    (ClaimsNothing, "test_the_installed_plugin_brings_this_framework"),
    (RemembersWhatItSaw, "test_recognizing_changes_neither_the_source_nor_the_framework"),
    (SpoilsItsSource, "test_recognizing_changes_neither_the_source_nor_the_framework"),
    (SpoilsItsSource, "test_the_source_stays_as_it_was"),
    (RaisesRawErrors, "test_a_missing_file_is_a_model_file_error"),
    (RaisesRawErrors, "test_a_damaged_file_is_a_model_error"),
    (ForgetsItsInputs, "test_its_inputs_are_the_files_of_the_source"),
    (HidesACapability, "test_a_capability_is_declared_exactly_if_its_method_is_there"),
    (HidesACapability, "test_a_capability_that_is_not_declared_is_a_capability_error"),
    (BoastsACapability, "test_a_capability_is_declared_exactly_if_its_method_is_there"),
    (ReversesTheLayers, "test_quantizable_layers_come_in_graph_order"),
    (LeavesLayersNameless, "test_every_node_has_a_name_that_is_unique_or_not_quantizable"),
    (IgnoresThePlan, "test_a_plan_without_layers_quantizes_nothing"),
    (LosesTheLastLayer, "test_every_layer_of_the_plan_reaches_the_files"),
    (LosesTheOffset, "test_every_activation_factor_reaches_the_files"),
    (LosesTheWeightScale, "test_every_weight_factor_reaches_the_files"),
    (EditsTheGraph, "test_one_graph_may_be_used_again"),
    (WritesATimestamp, "test_the_same_input_gives_the_same_bytes"),
    (WritesATimestamp, "test_an_inserted_graph_is_written_twice_alike"),
    (AlwaysWritesAnUnderscore, "test_the_model_file_is_named_after_the_prefix"),
    (ForgetsTheFlavor, "test_written_files_lie_in_the_folder_the_model_first"),
    (ForgetsTheFlavor, "test_the_twins_share_no_file_name"),
    (LeavesAScratchFile, "test_written_files_lie_in_the_folder_the_model_first"),
    (ClaimsForeignCompanions, "test_a_strange_file_has_no_companions"),
    (ClaimsForeignCompanions, "test_companions_are_files_of_the_same_write"),
]


class Contract(FrameworkContract):
    """The contract for one framework, called method by method."""

    __test__ = False
    layer_names = ("fc1", "fc2")

    def __init__(self, kind):
        self.kind = kind

    def framework(self):
        return self.kind()

    def make_source(self, folder):
        path = folder / "net.toy.json"
        layers = [
            {"name": "fc1", "weight": [[0.5, -0.25], [0.75, 1.0]], "bias": [0.5, -0.5]},
            {"name": "fc2", "weight": [[0.25, 0.125]], "bias": [1.0]},
        ]
        path.write_text(json.dumps({"layers": layers}))
        return path


def failures_of(kind, test, tmp_path):
    """Run one test of the contract with each of its parameters; return what it raises."""
    contract = Contract(kind)
    method = getattr(contract, test)
    (names, values), *_ = [mark.args for mark in getattr(method, "pytestmark", [])] or [((), [()])]
    if isinstance(names, str):
        names, values = (names,), [(value,) for value in values]
    failures = []
    for index, value in enumerate(values):
        folder = tmp_path / str(index)
        folder.mkdir()
        known = {"source": contract.make_source(folder), "tmp_path": folder, **dict(zip(names, value, strict=True))}
        arguments = {name: known[name] for name in inspect.signature(method).parameters}
        try:
            method(**arguments)
        except CAUGHT as failure:
            failures.append(failure)
    return failures


@pytest.mark.parametrize(("kind", "test"), FAULTS, ids=[f"{kind.__name__}-{test}" for kind, test in FAULTS])
def test_the_fault_is_caught(kind, test, tmp_path):
    assert failures_of(kind, test, tmp_path)


def always_agree(framework, fake_quant, deploy, data):
    return VerifyReport(layers=())


def write_a_timestamp(framework, graph, folder, prefix, flavor):
    (folder / f"{prefix}_{flavor.value}_model.toy.json").write_text(str(next(COUNTER)))
    return [folder / f"{prefix}_{flavor.value}_model.toy.json"]


def spoil_the_source(framework, source):
    with source.open("a") as stream:
        stream.write(" ")
    return LOAD(framework, source)


def reverse_the_layers(framework, graph):
    return LAYERS(framework, graph)[::-1]


LOAD, LAYERS = ToyFramework.load, ToyFramework.layers
BLIND = {"verify": always_agree, "capabilities": frozenset({Capability.VERIFY})}


@pytest.mark.parametrize(
    ("changes", "test"),
    [
        (BLIND, "test_the_twins_of_different_records_do_not_verify"),
        (BLIND, "test_the_twins_of_one_save_verify"),
        ({"write": write_a_timestamp}, "test_saving_again_replaces_the_files_with_the_same"),
        ({"write": write_a_timestamp}, "test_one_twin_alone_is_that_of_both"),
        ({"load": spoil_the_source}, "test_the_source_stays_as_it_was_when_saved"),
        ({"layers": reverse_the_layers}, "test_both_twins_land_in_the_folder_and_nothing_else"),
    ],
)
def test_a_fault_of_the_installed_plugin_is_caught_when_saving(changes, test, tmp_path, monkeypatch):
    for name, value in changes.items():
        monkeypatch.setattr(ToyFramework, name, value)
    assert failures_of(ToyFramework, test, tmp_path)


HEAVY_PLUGIN = """
from twinquant.registry import hookimpl
from twinquant_toy.framework import ToyFramework
PLUGIN_API = 1

class Heavy(ToyFramework):
    name = "heavy"
    def recognize(self, source):
        import iniconfig  # stands for something heavy; pytest depends on it, so it is there
        return super().recognize(source)

@hookimpl
def twinquant_framework():
    return Heavy()
"""


@pytest.mark.parametrize("heavy", [True, False])
def test_a_heavy_import_is_caught(heavy, tmp_path, monkeypatch):
    class Heavy(ToyFramework):
        name = "heavy"

    site = tmp_path / "site"
    info = site / "heavy-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: heavy\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[twinquant.frameworks]\nheavy = heavy_plugin\n")
    source = HEAVY_PLUGIN if heavy else HEAVY_PLUGIN.replace("iniconfig", "json")
    (site / "heavy_plugin.py").write_text(source)
    monkeypatch.setenv("PYTHONPATH", str(site))
    monkeypatch.setattr(Contract, "light_modules", frozenset({"heavy_plugin", "twinquant_toy"}))
    failures = failures_of(Heavy, "test_recognizing_imports_nothing_heavy", tmp_path)
    assert ["['iniconfig'] == []" in str(failure) for failure in failures] == ([True] if heavy else [])


@pytest.mark.parametrize("test", sorted({test for _, test in FAULTS}))
def test_the_same_tests_pass_without_a_fault(test, tmp_path):
    assert failures_of(ToyFramework, test, tmp_path) == []
