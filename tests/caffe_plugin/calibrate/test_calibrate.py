"""Calibrating Caffe nets in one call, against factors computed here."""

import numpy as np
import pytest
from nets import small_net, stored_arrays
from runs import assert_equal_to, forward

import twinquant
from twinquant.data import DataOptions
from twinquant.errors import ConfigError, UnsupportedModelError
from twinquant.records import parse_record_file
from twinquant.registry import Tap
from twinquant_caffe.framework import CaffeFramework
from twinquant_caffe.load import load_net

RNG = np.random.default_rng(17)
TEXT = """name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 10 dim: 3 dim: 8 dim: 8 } } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param { num_output: 4 kernel_size: 3 pad: 1 bias_term: false } }
layer { name: "bn" type: "BatchNorm" bottom: "conv" top: "conv" }
layer { name: "scale" type: "Scale" bottom: "conv" top: "conv" scale_param { bias_term: true } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "up" type: "Deconvolution" bottom: "conv" top: "up"
        convolution_param { num_output: 6 kernel_size: 2 stride: 2 group: 2 } }
layer { name: "side" type: "Convolution" bottom: "conv" top: "side" convolution_param { num_output: 6 kernel_size: 1 } }
layer { name: "pool" type: "Pooling" bottom: "up" top: "pool" pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
layer { name: "sum" type: "Eltwise" bottom: "pool" bottom: "side" top: "sum" }
layer { name: "fc" type: "InnerProduct" bottom: "sum" top: "fc" inner_product_param { num_output: 5 } }
"""


def values(*shape):
    return RNG.standard_normal(shape).astype(np.float32)


def blobs():
    return {
        "conv": [values(4, 3, 3, 3)],
        "bn": [values(4), np.abs(values(4)) + 0.5, np.float32([2])],
        "scale": [values(4), values(4)],
        "up": [values(4, 3, 2, 2), values(6)],
        "side": [values(6, 4, 1, 1), values(6)],
        "fc": [values(5, 6 * 64), values(5)],
    }


@pytest.fixture(scope="module")
def parameters():
    return blobs()


@pytest.fixture
def pair(tmp_path, parameters):
    return small_net(tmp_path / "net", TEXT, parameters)


MINMAX = {"activation_algorithm": "minmax"}


def minmax_factors(array):
    """The asymmetric 8-bit factors of the range, zero inside: by the formula of the documentation."""
    low, high = min(0.0, float(array.min())), max(0.0, float(array.max()))
    scale = (high - low) / 255
    return scale, round(-128 - low / scale)


def test_activation_factors_are_those_of_the_tensors_that_the_layers_read(pair, tmp_path):
    data = values(4, 3, 8, 8)
    records = twinquant.calibrate(
        pair, data, tmp_path / "r.txt", config=MINMAX, batch_num=2, options=DataOptions(batch_size=2)
    ).records
    assert list(records) == ["conv", "up", "side", "pool", "fc"]
    read = {"conv": None, "up": "relu", "side": "relu", "pool": "up", "fc": "sum"}
    for name, producer in read.items():
        seen = data if producer is None else forward(pair, {"data": data}, producer)
        scale, offset = minmax_factors(seen)
        assert records[name].scale_d == pytest.approx(scale, rel=1e-5)
        assert records[name].offset_d == offset


def test_weight_scales_are_those_of_the_fused_weights(pair, parameters, tmp_path):
    records = twinquant.calibrate(pair, [values(1, 3, 8, 8)], tmp_path / "r.txt", config=MINMAX, batch_num=1).records
    _, variance, factor = parameters["bn"]
    gain = parameters["scale"][0] / np.sqrt(variance / factor + 1e-5)

    def symmetric(weight, axes):
        high, low = weight.max(axis=axes), -weight.min(axis=axes)
        return np.where(high >= low, high / 127, low / 128)

    conv = parameters["conv"][0] * gain[:, None, None, None]
    np.testing.assert_allclose(records["conv"].scale_w, symmetric(conv, (1, 2, 3)), rtol=1e-5)
    up = parameters["up"][0]  # output channel = group * 3 + j
    wanted = np.concatenate([symmetric(up[:2], (0, 2, 3)), symmetric(up[2:], (0, 2, 3))])
    np.testing.assert_allclose(records["up"].scale_w, wanted, rtol=1e-6)
    np.testing.assert_allclose(records["fc"].scale_w, symmetric(parameters["fc"][0].reshape(1, -1), 1), rtol=1e-6)
    assert not records["pool"].scale_w.size


def test_records_name_the_input_shapes_and_nothing_that_caffes_reader_refuses(pair, tmp_path):
    path = tmp_path / "r.txt"
    twinquant.calibrate(pair, [values(1, 3, 8, 8)], path, batch_num=1)
    records = parse_record_file(path).records
    shapes = {name: (record.channels, record.height, record.width) for name, record in records.items()}
    assert shapes == {"conv": (3, 8, 8), "up": (4, 8, 8), "side": (4, 8, 8), "pool": (6, 16, 16), "fc": (6, 8, 8)}
    fields = {line.split(":")[0].strip() for line in path.read_text().splitlines() if ":" in line}
    assert fields == {"key", "scale_d", "offset_d", "scale_w", "offset_w", "channels", "height", "width"}


def test_the_record_is_for_the_net_as_it_was_given(pair, tmp_path, caplog):
    twinquant.calibrate(pair, [values(1, 3, 8, 8)], tmp_path / "r.txt", batch_num=1)
    assert "prepared_model" not in caplog.text
    output = twinquant.save_model(pair, tmp_path / "r.txt", tmp_path / "out" / "model")
    assert [layer.name for layer in output.plan] == ["conv", "up", "side", "pool", "fc"]


def test_the_prepared_net_is_the_fused_one(pair, tmp_path):
    prepared = tmp_path / "prepared.prototxt"
    twinquant.calibrate(pair, [values(1, 3, 8, 8)], tmp_path / "r.txt", batch_num=1, prepared_model=prepared)
    assert "BatchNorm" not in prepared.read_text()
    feeds = {"data": values(2, 3, 8, 8)}
    assert_equal_to(forward(pair, feeds), forward((prepared, prepared.with_suffix(".caffemodel")), feeds))


def test_without_fusion_every_record_that_could_be_fused_says_so(pair, tmp_path):
    records = twinquant.calibrate(
        pair, [values(1, 3, 8, 8)], tmp_path / "r.txt", batch_num=1, config={"do_fusion": False}
    ).records
    assert all(records[name].skip_fusion for name in ("conv", "up", "side", "fc"))
    output = twinquant.save_model(pair, tmp_path / "r.txt", tmp_path / "out" / "model")
    assert 'type: "BatchNorm"' in output.fake_quant.model.read_text()


def test_layers_that_skip_fusion_say_so_in_their_record(pair, tmp_path):
    records = twinquant.calibrate(
        pair, [values(1, 3, 8, 8)], tmp_path / "r.txt", batch_num=1, config={"skip_fusion_layers": ["conv", "fc"]}
    ).records
    assert [name for name, record in records.items() if record.skip_fusion] == ["conv", "fc"]


def test_workers_find_the_same_factors(pair, tmp_path):
    data, options = values(4, 3, 8, 8), DataOptions(batch_size=1)
    for workers in (1, 2):
        path = tmp_path / f"{workers}.txt"
        twinquant.calibrate(pair, data, path, batch_num=4, options=options, workers=workers)
    assert (tmp_path / "1.txt").read_bytes() == (tmp_path / "2.txt").read_bytes()


def test_quantize_writes_both_twins_of_the_fused_net(pair, tmp_path):
    data = values(8, 3, 8, 8)
    result = twinquant.quantize(pair, data, tmp_path / "out" / "model", batch_num=2, options=DataOptions(batch_size=4))
    fake, deploy = result.output.fake_quant.files, result.output.deploy.files
    wanted, found = forward(pair, {"data": data}), forward(fake, {"data": data})
    cosine = (wanted * found).sum() / np.linalg.norm(wanted) / np.linalg.norm(found)
    assert cosine > 0.999
    assert stored_arrays(deploy[1])["conv"][0].dtype == np.int8


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"layers": {"conv": {"dmq_balancer_param": 0.5}}}, "dmq_balancer_param"),
        ({"layers": {"conv": {"activation_bits": 16}}}, "activation_quant_params.num_bits"),
        ({"fakequant_precision_mode": "FORCE_FP16_QUANT"}, "fakequant_precision_mode"),
    ],
)
def test_settings_that_no_record_of_caffe_can_hold_are_refused_before_anything_runs(pair, tmp_path, config, path):
    with pytest.raises(ConfigError, match=path):
        twinquant.calibrate(pair, [values(1, 3, 8, 8)], tmp_path / "r.txt", batch_num=1, config=config)


def test_balancing_is_refused(pair):
    with pytest.raises(UnsupportedModelError, match="'conv': Caffe nets cannot be balanced"):
        CaffeFramework().balance(load_net(pair), {"conv": np.ones(3, np.float32)})


def test_the_batch_of_the_prototxt_binds_nobody(pair):
    (wanted,) = CaffeFramework().model_inputs(load_net(pair))
    assert (wanted.name, wanted.dtype, wanted.shape) == ("data", "float32", (None, 3, 8, 8))


def test_what_a_data_layer_of_a_training_net_brings_has_to_be_fed(tmp_path):
    text = (
        'layer { name: "train" type: "Data" top: "data" top: "label" include { phase: TRAIN } }'
        'layer { name: "test" type: "Data" top: "data" top: "label" include { phase: TEST } }'
        'layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 2 } }'
        'layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }'
    )
    net = load_net(small_net(tmp_path, text, {"fc": [values(2, 12), values(2)]}))
    assert [wanted.name for wanted in CaffeFramework().model_inputs(net)] == ["data"]
    data = values(2, 3, 2, 2)
    run = CaffeFramework().activations(net, [Tap("fc")])
    ((_, (seen,)),) = run({"data": data})
    np.testing.assert_array_equal(seen, data)
