"""Nets that this package wrote are no float nets, though some hold nothing but floats."""

import numpy as np
import pytest
from amct_flow import TEXT
from nets import small_net
from twin_nets import save, varied_net

from twinquant.errors import UnsupportedModelError
from twinquant_caffe import amct
from twinquant_caffe.load import load_net


@pytest.mark.parametrize("style", ["builtin", "python"])
def test_a_fake_quant_net_is_refused_and_says_what_to_give(tmp_path, style):
    files = save(varied_net(tmp_path / "in"), tmp_path / "out", fake_quant_style=style).fake_quant.files
    with pytest.raises(
        UnsupportedModelError, match=r"is a fake-quant net, as the layer 'left_0_quant_layer.*give the float net"
    ):
        load_net(files[:2])
    assert load_net(files[:2], float_only=False).outputs


def test_the_modified_net_of_a_calibration_is_refused_and_says_what_to_give(tmp_path):
    def values(*shape):
        return np.ones(shape, np.float32)

    blobs = {
        "conv": [values(4, 3, 3, 3)],
        "bn": [values(4), values(4), values(1)],
        "scale": [values(4), values(4)],
        "left": [values(3, 4, 1, 1), values(3)],
        "right": [values(4, 3, 1, 1), values(3)],
        "fc": [values(5, 27), values(5)],
    }
    pair = small_net(tmp_path / "net", TEXT, blobs)
    modified = tmp_path / "modified.prototxt", tmp_path / "modified.caffemodel"
    amct.create_quant_config(tmp_path / "config.json", *pair)
    amct.quantize_model(amct.init(tmp_path / "config.json", *pair, tmp_path / "record.txt"), *modified)
    with pytest.raises(
        UnsupportedModelError, match=r"is the modified net of a calibration, as the layer 'data_cal.*give the float net"
    ):
        load_net(modified)


def test_python_layers_and_names_of_others_are_taken(tmp_path):
    text = """
    input: "x" input_shape { dim: 1 dim: 4 }
    layer { name: "a_0_quant_layer" type: "ReLU" bottom: "x" top: "x" }
    layer { name: "a_0_quant_layer/other" type: "ReLU" bottom: "x" top: "x" }
    layer { name: "mine" type: "Python" bottom: "x" top: "y" python_param { module: "mine" layer: "Mine" } }
    """
    assert len(load_net(small_net(tmp_path, text)).layers) == 3
