"""The third-party plugin passes the shipped contract unchanged, and quantizes as a hand calculation says."""

import json

import numpy as np
import pytest

import twinquant
from twinquant.errors import ModelContentError, RecordLayerError
from twinquant.records import LayerRecord, RecordSet
from twinquant.testing import FrameworkContract
from twinquant_toy.framework import ToyFramework


def write_model(path, layers):
    path.write_text(json.dumps({"layers": [{"name": n, "weight": w, "bias": b} for n, w, b in layers]}))
    return path


class TestToyContract(FrameworkContract):
    layer_names = ("fc1", "fc2")

    def framework(self):
        return ToyFramework()

    def make_source(self, folder):
        rng = np.random.default_rng(7)
        first, second = rng.uniform(-1, 1, (3, 4)), rng.uniform(-1, 1, (2, 3))
        layers = [("fc1", first.tolist(), [0.1, -0.2, 0.3]), ("fc2", second.tolist(), [0.5, 0.25])]
        return write_model(folder / "net.toy.json", layers)


def record(key, **changes):
    factors = {"scale_d": 0.5, "offset_d": -3, "scale_w": np.float32([0.25]), "offset_w": np.int32([0])}
    return RecordSet({key: LayerRecord(key, **{**factors, **changes})})


@pytest.fixture
def twins(tmp_path):
    """Both twins of a layer with weight [[1, -0.3], [100, 0.125]] and bias [1, -0.0625], as JSON."""
    source = write_model(tmp_path / "net.toy.json", [("fc", [[1.0, -0.3], [100.0, 0.125]], [1.0, -0.0625])])
    output = twinquant.save_model(source, record("fc"), tmp_path / "out" / "net")
    return {a.flavor.value: json.loads(a.model.read_text())["layers"][0] for a in output.artifacts}


def test_both_twins_hold_the_integers_of_a_hand_calculation(twins):
    # 1 / 0.25 = 4; -0.3 / 0.25 = -1.2; 100 / 0.25 = 400, saturated; 0.125 / 0.25 = 0.5, a tie to even
    assert twins["deploy"]["weight"] == twins["fake_quant"]["weight"] == [[4, -1], [127, 0]]
    # the bias has the scale 0.25 * 0.5 = 0.125; -0.0625 / 0.125 = -0.5, a tie to even
    assert twins["deploy"]["bias"] == twins["fake_quant"]["bias"] == [8, 0]


def test_the_activation_is_quantized_with_the_reciprocal_and_the_offset(twins):
    expected = {"divide_by": None, "scale": 2.0, "offset": -3, "low": -128, "high": 127}
    assert twins["deploy"]["quant"] == twins["fake_quant"]["quant"] == expected


def test_the_way_back_is_packed_in_deploy_and_plain_in_fake_quant(twins):
    assert twins["fake_quant"]["multiply_by"] == [0.125]
    assert twins["deploy"]["dequant"] == [0x3E000000]  # the float32 bits of 0.125


def test_a_layer_without_record_keeps_its_floats(tmp_path):
    layers = [("fc1", [[0.1, 0.2]], [0.3]), ("fc2", [[0.7]], [0.9])]
    source = write_model(tmp_path / "net.toy.json", layers)
    output = twinquant.save_model(source, record("fc1"), tmp_path / "out" / "net")
    kept = json.loads(output.deploy.model.read_text())["layers"][1]
    assert kept == {"name": "fc2", "weight": [[0.7]], "bias": [0.9]}


def test_a_weight_that_is_not_a_number_names_its_layer(tmp_path):
    source = write_model(tmp_path / "net.toy.json", [("fc", [[float("nan")]], [0.0])])
    with pytest.raises(ModelContentError, match="'fc'"):
        twinquant.save_model(source, record("fc"), tmp_path / "out" / "net")


def test_two_layers_of_one_name_are_ambiguous(tmp_path):
    source = write_model(tmp_path / "net.toy.json", [("fc", [[0.5]], [0.0]), ("fc", [[0.5]], [0.0])])
    with pytest.raises(RecordLayerError, match="2 nodes"):
        twinquant.save_model(source, record("fc"), tmp_path / "out" / "net")
