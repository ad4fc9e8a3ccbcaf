"""NaNs: what both twins cannot compute is no disagreement; what comes of it is not compared, and that is said."""

import numpy as np
import pytest
from nets import small_net
from twin_nets import save

import twinquant

pytest.importorskip("cv2")

# By PoolingLayer::Reshape there are ceil((6 - 1) / 2) + 1 = 4 windows on both axes; the last ones begin at 6, behind
# the input, and their mean is 0 / 0: 16 - 9 = 7 of 16 values.
HEAD = 'input: "data" input_shape { dim: 2 dim: 4 dim: 6 dim: 6 }\n'
POOL = (
    'layer { name: "pool" type: "Pooling" bottom: "data" top: "pool" '
    "pooling_param { pool: AVE kernel_size: 1 stride: 2 } }\n"
)
CONV = (
    'layer { name: "conv" type: "Convolution" bottom: "pool" top: "conv" '
    "convolution_param { num_output: 4 kernel_size: 1 } }\n"
)
FACTORS = {"pool": (0.125, 3, []), "conv": (0.125, 3, [0.5])}


def verified(tmp_path, text, blobs, style):
    names = [name for name in FACTORS if f'"{name}"' in text]
    source = small_net(tmp_path / "in", text, blobs)
    factors = {name: FACTORS[name] for name in names}
    output = save(source, tmp_path / "out", factors, fake_quant_style=style)
    return twinquant.verify(output.fake_quant.model, output.deploy.model)


@pytest.mark.parametrize("style", ["builtin", "python"])
def test_a_mean_of_nothing_is_no_disagreement(tmp_path, style):
    report = verified(tmp_path, HEAD + POOL, {}, style)
    assert report.agree
    assert report.layers[0].notes == ()


@pytest.mark.parametrize("style", ["builtin", "python"])
def test_a_mean_of_less_than_nothing_is_zero(tmp_path, style):
    # With a stride of 4, the last windows begin at 8 and end at min(8 + 1, 6) = 6.
    report = verified(tmp_path, HEAD + POOL.replace("stride: 2", "stride: 4"), {}, style)
    assert report.agree
    assert report.layers[0].max_difference == 0


@pytest.mark.parametrize("style", ["builtin", "python"])
def test_what_comes_of_values_that_are_none_is_not_compared_and_that_is_said(tmp_path, style):
    blobs = {"conv": [np.eye(4, dtype=np.float32).reshape(4, 4, 1, 1), np.ones(4, np.float32)]}
    report = verified(tmp_path, HEAD + POOL + CONV, blobs, style)
    assert report.agree
    (note,) = report.layers[1].notes
    assert note.startswith(f"{2 * 4 * 7} values of its activation are NaN")


def test_a_value_that_only_one_twin_cannot_compute_is_a_disagreement(tmp_path, monkeypatch):
    from twinquant_caffe.verify import dynamic

    exact = dynamic.dequantize
    monkeypatch.setattr(dynamic, "dequantize", lambda *arguments: np.nan_to_num(exact(*arguments)))
    report = verified(tmp_path, HEAD + POOL, {}, "builtin")
    assert not report.agree
