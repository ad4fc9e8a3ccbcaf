"""The accuracy-based search: few layers stay float, and what was tried is reported."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import twinquant
from twinquant.errors import ArgumentError, CalibrationError
from twinquant.records import parse_record_file
from twinquant_onnx import amct

REPORT = "accuracy_based_auto_calibration_record.json"
RANKING = "accuracy_based_auto_calibration_ranking_information.json"
FINAL_CONFIG = "accuracy_based_auto_calibration_final_config.json"


def chain():
    """Three products; the weight of the second has one value so large that its other values are rounded coarsely."""
    random = np.random.default_rng(4)
    weights = {f"w{index}": random.normal(size=(8, 8)).astype(np.float32) for index in (1, 2, 3)}
    weights["w2"][0, 0] = 200.0
    weights["w1"][:, 0] *= np.float32(1e-4)  # what meets the large value is small
    nodes = [
        helper.make_node("MatMul", ["x", "w1"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "w2"], ["b"], name="second"),
        helper.make_node("MatMul", ["b", "w3"], ["y"], name="third"),
    ]
    return nodes, weights


class Evaluator(amct.ModelEvaluator):
    """Judges a model by the relative error of its outputs."""

    def __init__(self, most, batches=2):
        random = np.random.default_rng(6)
        self.data = [random.normal(size=(16, 8)).astype(np.float32) for _ in range(batches)]
        self.most = most
        self.evaluated = []

    def calibration(self, modified_model_file):
        session = ort.InferenceSession(modified_model_file, amct.AMCT_SO)
        for batch in self.data:
            session.run(None, {"x": batch})

    def evaluate(self, model_file):
        self.evaluated.append(model_file)
        session = ort.InferenceSession(model_file, amct.AMCT_SO)
        return np.concatenate([session.run(None, {"x": batch})[0] for batch in self.data])

    def metric_eval(self, original_metric, new_metric):
        loss = np.abs(new_metric - original_metric).max() / np.abs(original_metric).max()
        return loss < self.most, np.array([loss])


@pytest.fixture
def search(tmp_path, kit):
    """Runs the search on the chain, in a folder of its own."""
    nodes, weights = chain()
    model = kit.make_model(nodes, weights, {"x": (TensorProto.FLOAT, ["n", 8])}, ["y"])
    onnx.save(model, tmp_path / "model.onnx")
    amct.create_quant_config(tmp_path / "config.json", tmp_path / "model.onnx", batch_num=2)
    kit.change_config(tmp_path / "config.json", kit.use_minmax)

    def run(evaluator, **options):
        amct.accuracy_based_auto_calibration(
            str(tmp_path / "model.onnx"),
            evaluator,
            str(tmp_path / "config.json"),
            str(tmp_path / "record.txt"),
            str(tmp_path / "out" / "m"),
            **options,
        )
        return tmp_path

    return run


def report(folder):
    return json.loads((folder / "out" / REPORT).read_text())


def test_the_one_sensitive_layer_stays_float(search):
    folder = search(Evaluator(0.1))
    assert list(parse_record_file(folder / "record.txt").records) == ["first", "third"]


def test_the_twins_of_the_best_trial_are_written(search):
    evaluator = Evaluator(0.1)
    folder = search(evaluator)
    twins = [folder / "out" / f"m_{flavor}_model.onnx" for flavor in ("fake_quant", "deploy")]
    assert twinquant.verify(*twins).agree
    names = [node.name for node in onnx.load(twins[1]).graph.node if node.op_type == "AscendQuant"]
    assert names == ["first.quant", "third.quant"]
    original = evaluator.evaluate(str(folder / "model.onnx"))
    assert evaluator.metric_eval(original, evaluator.evaluate(str(twins[0])))[0]


def test_every_trial_is_reported(search):
    evaluator = Evaluator(0.1)
    trials = report(search(evaluator))["trials"]
    assert len(trials) == len(evaluator.evaluated) - 1  # the original model was evaluated, too
    assert [trial["float_layers"] for trial in trials] == [[], ["second"]]
    assert [trial["satisfied"] for trial in trials] == [False, True]
    assert [trial["best"] for trial in trials] == [False, True]
    assert trials[1]["loss"] < 0.1 < trials[0]["loss"]


def test_the_ranking_has_the_least_similar_layer_first(search):
    ranking = json.loads((search(Evaluator(0.1)) / "out" / RANKING).read_text())
    assert ranking[0][0] == "second"
    assert ranking[0][1] < 0.9 < ranking[1][1] <= ranking[2][1] <= 1.0


def test_the_similarity_is_that_of_the_layer_alone_on_the_first_batch(search):
    evaluator = Evaluator(0.1)
    folder = search(evaluator)
    ranking = dict(json.loads((folder / "out" / RANKING).read_text()))
    _, weights = chain()
    read = evaluator.data[0] @ weights["w1"]
    whole = np.concatenate(evaluator.data) @ weights["w1"]
    scale = (whole.max() - whole.min()) / 255
    offset = -np.rint(whole.min() / scale) - 128
    rounded = (np.clip(np.rint(read / scale) + offset, -128, 127) - offset) * scale
    step = weights["w2"].max() / 127
    expected, given = read @ weights["w2"], rounded @ (np.rint(weights["w2"] / step) * step)
    cosine = (expected * given).sum() / np.linalg.norm(expected) / np.linalg.norm(given)
    assert ranking["second"] == pytest.approx(cosine, abs=1e-3)


def test_the_final_configuration_switches_the_float_layers_off(search):
    content = json.loads((search(Evaluator(0.1)) / "out" / FINAL_CONFIG).read_text())
    assert [content[name]["quant_enable"] for name in ("first", "second", "third")] == [True, False, True]


def test_an_evaluator_that_fails_leaves_the_best_trial_and_the_report_behind(search, tmp_path):
    class Failing(Evaluator):
        def evaluate(self, model_file):
            if len(self.evaluated) == 3:  # the original, everything quantized, "second" in float
                raise RuntimeError("the disk is full")
            return super().evaluate(model_file)

    class OneMore:
        def initialize(self, similarities):
            self.answers = iter([["second"], ["first"]])

        def update_quant_config(self, verdict):
            in_float = next(self.answers)
            layers = {name: name not in in_float for name in ("first", "second", "third")}
            return {"stop_flag": False, "roll_back_config": layers}

    with pytest.raises(RuntimeError, match="the disk is full"):
        search(Failing(0.1), strategy=OneMore())
    assert list(parse_record_file(tmp_path / "record.txt").records) == ["first", "third"]
    assert [trial["best"] for trial in report(tmp_path)["trials"]] == [False, True]
    content = json.loads((tmp_path / "out" / FINAL_CONFIG).read_text())
    assert [content[name]["quant_enable"] for name in ("first", "second", "third")] == [True, False, True]


def test_all_layers_are_quantized_where_that_is_accurate_enough(search):
    evaluator = Evaluator(10.0)
    folder = search(evaluator)
    assert list(parse_record_file(folder / "record.txt").records) == ["first", "second", "third"]
    assert len(evaluator.evaluated) == 2


def test_an_accuracy_that_no_trial_holds_is_an_error_after_the_report(search, tmp_path):
    with pytest.raises(CalibrationError, match="none of the 3 trials holds the accuracy"):
        search(Evaluator(1e-9))
    assert not any(trial["satisfied"] for trial in report(tmp_path)["trials"])
    assert not list((tmp_path / "out").glob("*.onnx"))
    assert (tmp_path / "record.txt").read_text() == ""  # no layer is quantized in the end


def test_layers_in_float_have_their_float_weights(search):
    folder = search(Evaluator(0.1))
    _, weights = chain()
    for flavor in ("fake_quant", "deploy"):
        graph = onnx.load(folder / "out" / f"m_{flavor}_model.onnx").graph
        (second,) = (onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name == "w2")
        np.testing.assert_array_equal(second, weights["w2"])


def test_an_interruption_keeps_the_best_trial(search):
    class Impatient(Evaluator):
        def evaluate(self, model_file):
            if len(self.evaluated) == 3:
                raise KeyboardInterrupt
            return super().evaluate(model_file)

    folder = search(Impatient(1e-9))
    assert report(folder)["stopped"] is True
    assert list(parse_record_file(folder / "record.txt").records) == ["first", "third"]
    assert (folder / "out" / "m_deploy_model.onnx").exists()


def test_a_strategy_of_the_vendors_form_is_followed(search):
    class AllAtOnce:
        def initialize(self, ranking_info):
            self.worst = min(ranking_info, key=ranking_info.get)

        def update_quant_config(self, metric_eval):
            return {"stop_flag": True, "roll_back_config": {name: name != self.worst for name in ("first", "second")}}

    folder = search(Evaluator(0.1), strategy=AllAtOnce())
    assert [trial["float_layers"] for trial in report(folder)["trials"]] == [[], ["second"]]


def test_too_few_batches_in_the_evaluators_calibration_are_counted(search):
    with pytest.raises(CalibrationError) as caught:
        search(Evaluator(0.1, batches=1))
    assert "model_evaluator.calibration ran 1 of 2 batches" in str(caught.value)
    assert "/" not in str(caught.value)  # no path: what there was is gone


@pytest.mark.parametrize("swallow", [False, True])
def test_batches_that_give_no_factors_are_told_with_the_layer(search, swallow):
    class Zeros(Evaluator):
        def calibration(self, modified_model_file):
            self.data = [np.zeros_like(batch) for batch in self.data]
            try:
                super().calibration(modified_model_file)
            except Exception:
                if not swallow:
                    raise

    with pytest.raises(CalibrationError, match=r"model_evaluator\.calibration: every value .* 'first': 0"):
        search(Zeros(0.1))


def test_an_error_of_the_evaluators_own_calibration_is_left_alone(search):
    class Broken(Evaluator):
        def calibration(self, modified_model_file):
            raise LookupError("no pictures")

    with pytest.raises(LookupError, match="no pictures"):
        search(Broken(0.1))


def test_an_evaluator_that_refuses_the_original_is_refused(search):
    with pytest.raises(ArgumentError, match="does not accept the original model's own accuracy"):
        search(Evaluator(-1.0))


def test_an_evaluator_without_a_method_is_refused(search):
    with pytest.raises(ArgumentError, match="no method 'calibration'"):
        search(object())


def test_an_evaluator_that_returns_no_pair_is_refused(search):
    class Vague(Evaluator):
        def metric_eval(self, original_metric, new_metric):
            return True

    with pytest.raises(ArgumentError, match="metric_eval must return"):
        search(Vague(0.1))


@pytest.mark.parametrize("options", [{"strategy": "Linear"}, {"sensitivity": "Angle"}])
def test_unknown_names_are_refused_before_anything_is_run(search, options):
    evaluator = Evaluator(0.1)
    with pytest.raises(ArgumentError, match=next(iter(options))):
        search(evaluator, **options)
    assert evaluator.evaluated == []


def test_no_stored_batch_is_left_behind(search):
    folder = search(Evaluator(0.1))
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.onnx", "out", "record.txt"]
