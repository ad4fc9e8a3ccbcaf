"""The Caffe plugin passes the shipped contract unchanged."""

import numpy as np
from nets import small_net

from twinquant.testing import FrameworkContract
from twinquant_caffe.framework import CaffeFramework

SMALL = """
name: "small"
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 1 dim: 2 dim: 6 dim: 6 } } }
layer {
  name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 pad: 1 }
}
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { pool: AVE kernel_size: 2 stride: 2 } }
layer { name: "fc" type: "InnerProduct" bottom: "pool" top: "fc" inner_product_param { num_output: 5 } }
"""


class TestCaffeContract(FrameworkContract):
    layer_names = ("conv", "pool", "fc")

    def framework(self):
        return CaffeFramework()

    def make_source(self, folder):
        rng = np.random.default_rng(11)

        def weight(*shape):
            return rng.uniform(-1, 1, shape).astype(np.float32)

        blobs = {"conv": [weight(4, 2, 3, 3), weight(4)], "fc": [weight(5, 36), weight(5)]}
        return small_net(folder, SMALL, blobs)
