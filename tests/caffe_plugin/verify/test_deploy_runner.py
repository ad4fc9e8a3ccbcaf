"""Running a deploy pair without a device: exact integers, whatever their size, and OpenCV for the rest."""

import numpy as np
import pytest
from nets import small_net
from twin_nets import save, varied_net

from twinquant.errors import VerificationError
from twinquant_caffe.deploy_runner import DeployRunner
from twinquant_caffe.net import BlobVersion

pytest.importorskip("cv2")

WIDE = """
input: "x" input_shape { dim: 1 dim: 3000 }
layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc" inner_product_param { num_output: 2 } }
layer { name: "relu" type: "ReLU" bottom: "fc" top: "fc" }
"""


def test_a_whole_net_computes_what_its_fake_quant_twin_computes(tmp_path, run_prototxt):
    output = save(varied_net(tmp_path / "in"), tmp_path / "out")
    x = (np.random.default_rng(8).standard_normal((2, 4, 8, 8)) * 2).astype(np.float32)
    fake = run_prototxt(output.fake_quant.files, {"data": x}, "prob")
    with DeployRunner(output.deploy.model) as runner:
        found = runner.run({"data": x})
        again = runner.run({"data": x[:1]})
    assert list(found) == ["prob"]
    assert found["prob"].shape == (2, 5)
    assert np.allclose(found["prob"], fake, atol=1e-6)
    assert np.allclose(again["prob"], fake[:1], atol=1e-6)


def test_accumulators_beyond_float32_are_exact(tmp_path):
    weight = np.ones((2, 3000), np.float32)
    weight[1, 0] = -1
    bias = np.array([0.5, 0.25], np.float32)
    source = small_net(tmp_path / "in", WIDE, {"fc": [weight, bias]})
    output = save(source, tmp_path / "out", {"fc": (1.0, -128, [0.0078125])}, save_type="Deploy")
    with DeployRunner(output.deploy.model) as runner:
        found = runner.run({"x": np.full((1, 3000), 255, np.float32)})["fc"]
    # 255 * 127 a product (1 / 0.0078125 = 128 saturates), and the biases 64 and 32
    accumulators = np.array([255 * 127 * 3000 + 64, 255 * 127 * 2999 - 255 * 128 + 32])
    assert accumulators[0] > 2**24
    assert np.array_equal(found[0], accumulators.astype(np.float32) * np.float32(0.0078125))


def test_tensors_in_the_middle_can_be_asked_for(tmp_path):
    output = save(varied_net(tmp_path / "in"), tmp_path / "out")
    wanted = BlobVersion("left", 1)
    with DeployRunner(output.deploy.model, [wanted]) as runner:
        found = runner.tensors({"data": np.ones((2, 4, 8, 8), np.float32)})
    assert found[wanted].shape == (2, 6, 8, 8)
    assert found[wanted].min() == 0


def test_two_runners_do_not_disturb_each_other(tmp_path):
    one = save(varied_net(tmp_path / "one_in"), tmp_path / "one").deploy.model
    weight = [np.ones((2, 3000), np.float32), np.zeros(2, np.float32)]
    source = small_net(tmp_path / "two_in", WIDE, {"fc": weight})
    two = save(source, tmp_path / "two", {"fc": (1.0, 0, [1.0])}, save_type="Deploy").deploy.model
    x = np.ones((2, 4, 8, 8), np.float32)
    with DeployRunner(one) as first:
        alone = first.run({"data": x})["prob"]
        with DeployRunner(two) as second:
            assert second.run({"x": np.ones((1, 3000), np.float32)})["fc"].tolist() == [[3000, 3000]]
        assert np.array_equal(first.run({"data": x})["prob"], alone)


def test_an_input_that_does_not_fit_a_quantized_layer_is_an_error(tmp_path):
    weight = [np.ones((2, 3000), np.float32), np.zeros(2, np.float32)]
    source = small_net(tmp_path / "in", WIDE, {"fc": weight})
    deploy = save(source, tmp_path / "out", {"fc": (1.0, 0, [1.0])}, save_type="Deploy").deploy.model
    with DeployRunner(deploy) as runner, pytest.raises(VerificationError, match=r"layer 'fc' .* cannot be computed"):
        runner.run({"x": np.ones((1, 2999), np.float32)})


def test_any_failure_in_a_quantized_layer_is_raised(tmp_path, monkeypatch):
    # OpenCV 4.14 hangs after an exception of Python code.
    from twinquant_caffe import deploy_runner

    def fail(*arguments):
        raise FloatingPointError("no number")

    monkeypatch.setattr(deploy_runner, "accumulate", fail)
    deploy = save(varied_net(tmp_path / "in"), tmp_path / "out").deploy.model
    with DeployRunner(deploy) as runner, pytest.raises(FloatingPointError, match="no number"):
        runner.run({"data": np.ones((2, 4, 8, 8), np.float32)})
