"""The accuracy-based search of the vendor's flow on a small net."""

import json
from pathlib import Path

import numpy as np
import pytest
from amct_flow import LAYERS, batch, set_algorithm
from nets import read_prototxt
from runs import forward

from twinquant.errors import ArgumentError, CalibrationError
from twinquant.records import parse_record_file
from twinquant_caffe import amct

PREFIX = "accuracy_based_auto_calibration"


class CountingEvaluator:
    """Counts quantized layers, and takes no more than `most` of them."""

    def __init__(self, run, most):
        self.run = run
        self.most = most
        self.evaluated = []

    def calibration(self, model_file, weights_file):
        self.run((model_file, weights_file), [batch(number) for number in range(3)])

    def evaluate(self, model_file, weights_file):
        assert weights_file.endswith(".caffemodel")
        names = [layer.name for layer in read_prototxt(Path(model_file)).layer]
        self.evaluated.append(sum(name.endswith("_dequant_layer") for name in names))
        return self.evaluated[-1]

    def metric_eval(self, original_metric, new_metric):
        return new_metric <= self.most, float(new_metric - original_metric)


def calibrate(flow, evaluator, **options):
    amct.accuracy_based_auto_calibration(
        str(flow.pair[0]),
        str(flow.pair[1]),
        evaluator,
        str(flow.config),
        str(flow.record),
        str(flow.folder / "out" / "model"),
        **options,
    )


@pytest.mark.parametrize("algorithm", ["ifmr", "minmax"])
def test_as_few_layers_as_needed_stay_float_the_most_sensitive_first(flow, run_opencv, algorithm):
    set_algorithm(flow, act_algo=algorithm)
    calibrate(flow, CountingEvaluator(run_opencv, 3))
    ranking = json.loads((flow.folder / "out" / f"{PREFIX}_ranking_information.json").read_text())
    assert [similarity for _, similarity in ranking] == sorted(similarity for _, similarity in ranking)
    assert all(0.9 < similarity < 1 for _, similarity in ranking)
    sensitive = [name for name, _ in ranking[:2]]
    assert set(parse_record_file(flow.record).records) == set(LAYERS) - set(sensitive)
    final = json.loads((flow.folder / "out" / f"{PREFIX}_final_config.json").read_text())
    assert [name for name in LAYERS if not final[name]["quant_enable"]] == sorted(sensitive, key=LAYERS.index)
    names = {layer.name for layer in read_prototxt(flow.folder / "out" / "model_deploy_model.prototxt").layer}
    assert {name for name in LAYERS if f"{name}_dequant_layer" in names} == set(LAYERS) - set(sensitive)
    assert not flow.batches.exists()


def test_a_net_that_is_accurate_at_once_is_quantized_whole(flow, run_opencv):
    evaluator = CountingEvaluator(run_opencv, 5)
    calibrate(flow, evaluator)
    assert evaluator.evaluated == [0, 5]
    assert list(parse_record_file(flow.record).records) == LAYERS


def test_a_sensitivity_of_the_users_is_asked_with_both_outputs_of_every_layer(flow, run_opencv):
    compared = []

    class Sensitivity:
        def compare(self, original, quantized):
            compared.append((original, quantized))
            return -float(len(compared))

    calibrate(flow, CountingEvaluator(run_opencv, 4), sensitivity=Sensitivity())
    assert len(compared) == len(LAYERS)
    for original, quantized in compared:
        assert original.shape == quantized.shape
        assert 0 < np.abs(original - quantized).max() < 0.2 * np.abs(original).max()
    # the first layer's input is the first batch: its float output is what the unfused net computes in front of the ReLU
    np.testing.assert_allclose(np.maximum(compared[0][0], 0), forward(flow.pair, {"data": batch(0)}, "relu"), atol=1e-4)
    assert "fc" not in parse_record_file(flow.record).records


def test_no_accurate_net_is_an_error_and_nothing_is_saved(flow, run_opencv):
    with pytest.raises(CalibrationError, match=r"none of the .* trials holds the accuracy"):
        calibrate(flow, CountingEvaluator(run_opencv, 0))
    assert (flow.folder / "out" / f"{PREFIX}_record.json").exists()
    assert not (flow.folder / "out" / "model_deploy_model.prototxt").exists()
    assert not flow.batches.exists()


def test_an_evaluator_without_a_method_is_refused(flow):
    class Half:
        def calibration(self, model_file, weights_file):
            raise AssertionError

    with pytest.raises(ArgumentError, match="has no method 'evaluate'"):
        calibrate(flow, Half())
