"""Channels are known behind convolutions, whatever is known about what these read."""

import numpy as np
import pytest
from nets import small_net, stored_arrays
from twin_nets import save

from twinquant_caffe.channels import count_channels
from twinquant_caffe.load import load_net
from twinquant_caffe.net import BlobVersion

CONV = 'layer { name: "conv" type: "Convolution" bottom: "data" top: "conv" convolution_param { %s } }\n'
BLOBS = {"conv": [np.ones((4, 3, 3, 3), np.float32), np.zeros(4, np.float32)]}
THREE = "num_output: 4 kernel_size: 3"
HEADS = {
    "memory": 'layer { name: "d" type: "MemoryData" top: "data" top: "label"'
    " memory_data_param { batch_size: 2 channels: 3 height: 8 width: 8 } }\n",
    "database": 'layer { name: "d" type: "Data" top: "data" top: "label" data_param { batch_size: 2 } }\n',
    "no shape": 'input: "data"\n',
    "unknown layer": 'input: "x"\nlayer { name: "odd" type: "Oddity" bottom: "x" top: "data" }\n',
}
POOL = (
    'layer { name: "pool" type: "Pooling" bottom: "%s" top: "pool" '
    "pooling_param { pool: AVE kernel_size: 2 stride: 2 } }\n"
)


@pytest.mark.parametrize("head", HEADS)
def test_the_scale_behind_a_pooling_has_the_channels_of_the_convolution_before_it(tmp_path, head):
    text = HEADS[head] + CONV % THREE + 'layer { name: "r" type: "ReLU" bottom: "conv" top: "conv" }\n' + POOL % "conv"
    source = small_net(tmp_path / "in", text, BLOBS)
    output = save(source, tmp_path / "out", {"pool": (0.5, 0, [])}, save_type="Fakequant")
    (scale,) = stored_arrays(output.fake_quant.files[1])["pool_dequant_layer"]
    np.testing.assert_array_equal(scale, np.full(4, 0.5, np.float32))


def test_channels_add_up_in_a_concat_and_pass_a_pooling(tmp_path):
    text = (
        'input: "data"\n'
        + CONV % THREE
        + POOL % "conv"
        + 'layer { name: "c" type: "Concat" bottom: "pool" bottom: "pool" top: "c" }\n'
        'layer { name: "fc" type: "InnerProduct" bottom: "c" top: "fc" inner_product_param { num_output: 7 } }\n'
        'layer { name: "odd" type: "Oddity" bottom: "fc" top: "odd" }\n'
    )
    blobs = {**BLOBS, "fc": [np.ones((7, 8), np.float32), np.ones(7, np.float32)]}
    found = count_channels(load_net(small_net(tmp_path, text, blobs)))
    assert found == {BlobVersion(name, 0): count for name, count in {"conv": 4, "pool": 4, "c": 8, "fc": 7}.items()}


def test_a_convolution_along_another_axis_tells_nothing(tmp_path):
    text = 'input: "data"\n' + CONV % f"{THREE} axis: 2"
    assert count_channels(load_net(small_net(tmp_path, text, BLOBS))) == {}
