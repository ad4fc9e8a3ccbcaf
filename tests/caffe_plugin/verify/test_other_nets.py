"""Verification and inspection of nets that are not simple: training nets, forks' layers, integers shared by many."""

import numpy as np
import pytest
from nets import small_net
from twin_nets import FACTORS, save, varied_net

import twinquant
from twinquant.errors import ModelFileError
from twinquant_caffe.framework import CaffeFramework

pytest.importorskip("cv2")

TRAINING = """
layer { name: "train" type: "MemoryData" top: "data" top: "label"
  memory_data_param { batch_size: 2 channels: 3 height: 4 width: 4 } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 2 } }
layer { name: "relu" type: "ReLU" bottom: "fc" top: "fc" }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""

FORK = """
input: "x" input_shape { dim: 1 dim: 4 dim: 5 dim: 5 }
layer { name: "dw" type: "DepthwiseConvolution" bottom: "x" top: "dw"
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 } }
layer { name: "one" type: "Convolution" bottom: "dw" top: "one" convolution_param { num_output: 2 kernel_size: 1 } }
layer { name: "two" type: "Convolution" bottom: "dw" top: "two" convolution_param { num_output: 2 kernel_size: 1 } }
layer { name: "join" type: "Concat" bottom: "one" bottom: "two" top: "join" }
"""


def random_blobs(shapes):
    rng = np.random.default_rng(4)
    return {name: [rng.uniform(-1, 1, shape).astype(np.float32) for shape in each] for name, each in shapes.items()}


def agreeing(output):
    report = twinquant.verify(output.fake_quant.model, output.deploy.model)
    assert report.agree, report
    return report


def test_a_training_net_is_verified_on_what_its_data_layer_would_bring(tmp_path):
    source = small_net(tmp_path / "in", TRAINING, random_blobs({"fc": [(2, 48), (2,)]}))
    report = agreeing(save(source, tmp_path / "out", {"fc": (0.02, 4, [0.01])}))
    assert [output.name for output in report.outputs] == ["fc"]


def test_a_depthwise_layer_of_a_fork_and_a_shared_quantization(tmp_path):
    blobs = random_blobs({"dw": [(4, 1, 3, 3), (4,)], "one": [(2, 4, 1, 1), (2,)], "two": [(2, 4, 1, 1), (2,)]})
    factors = {"dw": (0.02, 4, [0.01] * 4), "one": (0.03, -3, [0.01]), "two": (0.03, -3, [0.01, 0.02])}
    report = agreeing(save(small_net(tmp_path / "in", FORK, blobs), tmp_path / "out", factors))
    assert [layer.name for layer in report.layers] == ["dw", "one", "two"]


def test_double_weights_are_quantized_as_floats(tmp_path):
    blobs = {"fc": [np.linspace(-1, 1, 96).reshape(2, 48), np.array([0.5, -0.5])]}
    source = small_net(tmp_path / "in", TRAINING, blobs)
    agreeing(save(source, tmp_path / "out", {"fc": (0.02, 4, [0.01])}))


def facts(path):
    return dict(CaffeFramework().inspect(path))


def test_inspect_tells_the_twins_apart(tmp_path):
    source = varied_net(tmp_path / "in")
    output = save(source, tmp_path / "out")
    python = save(source, tmp_path / "python", fake_quant_style="python")
    amct = save(source, tmp_path / "amct", fake_quant_style="amct")
    assert facts(source[0])["kind"] == "float net"
    assert facts(output.deploy.model)["kind"] == "deploy net, 6 x quantized layer, 5 x Quant"
    assert facts(output.fake_quant.model)["kind"] == "fake-quant net of the style builtin, 6 x quantized layer"
    assert facts(python.fake_quant.model)["kind"] == "fake-quant net of the style python, 6 x quantized layer"
    assert facts(amct.fake_quant.model)["kind"] == "fake-quant net of the style amct, 6 x quantized layer"


def test_inspect_tells_inputs_layers_and_parameters(tmp_path):
    found = facts(save(varied_net(tmp_path / "in"), tmp_path / "out", {"left": FACTORS["left"]}).deploy.model)
    assert found["input"] == "data: [2, 4, 8, 8]"
    assert found["layers"].startswith("14: Convolution 3, ReLU 2")
    # (108 + 6) + 72 + (54 + 6) + (192 + 4) + (1250 + 5) in the layers, 6 in the DeQuant
    assert found["parameters"] == "10, 1,703 values; 1 x int8"


def test_inspect_of_a_caffemodel_alone_says_what_to_give(tmp_path):
    with pytest.raises(ModelFileError, match="give the prototxt"):
        CaffeFramework().inspect(varied_net(tmp_path / "in")[1])


@pytest.mark.parametrize("style", ["builtin", "python"])
def test_a_pooling_that_is_cut_by_the_padding_of_the_other_axis_agrees(tmp_path, style):
    # OpenCV has a third row of windows, which begins at 8, behind the input.
    text = """
    input: "x" input_shape { dim: 2 dim: 3 dim: 7 dim: 9 }
    layer { name: "pool" type: "Pooling" bottom: "x" top: "pool"
      pooling_param { pool: AVE kernel_h: 1 kernel_w: 3 stride_h: 4 stride_w: 2 pad_h: 0 pad_w: 1 } }
    layer { name: "again" type: "Pooling" bottom: "pool" top: "again"
      pooling_param { pool: MAX kernel_h: 1 kernel_w: 3 stride_h: 2 stride_w: 2 pad_h: 0 pad_w: 1 } }
    """
    output = save(small_net(tmp_path / "in", text), tmp_path / "out", {"pool": (0.125, 3, [])}, fake_quant_style=style)
    x = np.random.default_rng(4).standard_normal((2, 3, 7, 9)).astype(np.float32)
    report = twinquant.verify(output.fake_quant.model, output.deploy.model, {"x": x})
    assert report.agree
    assert report.outputs[0].free_running < 1e-6
