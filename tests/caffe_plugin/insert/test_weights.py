"""Weights are quantized in blocks while they are written, and give the same bytes as at once."""

import numpy as np
import pytest
from twin_nets import rounded

from twinquant_caffe.insert.weights import QuantizedValues, pack_integers, scale_table
from twinquant_caffe.schema import DATA, INT8_DATA, INT32_DATA, UINT64_DATA
from twinquant_caffe.values import ArrayValues


def payload(weight, scale, view, field, groups=None):
    values = QuantizedValues(ArrayValues(weight), scale_table(scale, groups=groups), view, field, "the weight")
    content = b"".join(values.payload())
    assert len(content) == values.payload_size
    return content


@pytest.mark.parametrize("shape", [(7, 3, 111, 111), (3, 70_000, 1, 1), (300_000, 1, 1, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_weight_of_many_blocks(shape, per_channel):
    rng = np.random.default_rng(1)
    weight = rng.standard_normal(shape).astype(np.float32)
    scale = rng.uniform(0.005, 0.02, shape[0] if per_channel else 1).astype(np.float32)
    expected = rounded(weight, scale.reshape(-1, 1, 1, 1))
    view = (shape[0], 1, weight.size // shape[0])
    assert payload(weight, scale, view, INT8_DATA) == expected.tobytes()
    assert payload(weight, scale, view, DATA) == expected.astype("<f4").tobytes()


def test_a_deconvolution_of_many_blocks():
    rng = np.random.default_rng(2)
    weight = rng.standard_normal((12, 50, 20, 20)).astype(np.float32)
    scale = rng.uniform(0.005, 0.02, 200).astype(np.float32)
    expected = np.empty(weight.shape, np.int8)
    for row in range(12):
        for column in range(50):
            expected[row, column] = rounded(weight[row, column], scale[row // 3 * 50 + column])
    assert payload(weight, scale, (12, 50, 400), INT8_DATA, groups=4) == expected.tobytes()


def test_packed_integers_are_varints_and_negative_ones_take_ten_bytes():
    packed = pack_integers(INT32_DATA, np.array([0, 127, 128, -1], np.int32))
    assert b"".join(packed.payload()) == b"\x00\x7f\x80\x01" + b"\xff" * 9 + b"\x01"
    assert packed.payload_size == 14
    packed = pack_integers(UINT64_DATA, np.array([1 << 63], np.uint64))
    assert b"".join(packed.payload()) == b"\x80" * 9 + b"\x01"
