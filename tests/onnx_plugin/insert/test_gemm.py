"""Gemm: transB, alpha and beta, and biases of every shape that broadcasts."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from twinquant.errors import RecordLayerError, RecordValueError

M, K, N = 3, 6, 4


def gemm(kit, rng, bias_shape=None, **settings):
    x = rng.normal(size=(M, K)).astype(np.float32)
    w = rng.normal(size=(N, K) if settings.get("transB") else (K, N)).astype(np.float32)
    constants = {"w": w}
    if bias_shape is not None:
        constants["b"] = rng.normal(size=bias_shape).astype(np.float32)
    node = helper.make_node("Gemm", ["x", *constants], ["y"], "fc", **settings)
    model = kit.model([node], {"x": x.shape}, ["y"], constants)
    scale_w, scale_d = np.abs(w).max() / np.float32(127), np.abs(x).max() / np.float32(120)
    return model, x, constants, scale_w, scale_d


@pytest.mark.parametrize("settings", [{}, {"transB": 0}, {"transB": 1}, {"transA": 0, "transB": 1, "alpha": 1.0}])
def test_the_weight_is_stored_as_rows_of_inputs_and_trans_b_becomes_0(kit, rng, settings):
    model, x, constants, scale_w, scale_d = gemm(kit, rng, (N,), **settings)
    twins = kit.twins(model, {"fc": kit.record(scale_w, scale_d=scale_d)})
    w = constants["w"].T if settings.get("transB") else constants["w"]
    expected = kit.integers(w, scale_w)
    np.testing.assert_array_equal(kit.array(twins.deploy, "w"), expected, strict=True)
    np.testing.assert_array_equal(kit.array(twins.fake, "w"), expected.astype(np.float32), strict=True)
    for twin in (twins.fake, twins.deploy):
        assert kit.attributes(kit.node(twin, "fc")) == {**settings, **({"transB": 0} if "transB" in settings else {})}
    assert kit.array(twins.fake, "fc.fakedequant.dqscale.output0").shape == (1, 1)
    ds = scale_w * scale_d
    bias = np.rint(constants["b"] / ds).astype(np.int32)
    np.testing.assert_array_equal(kit.array(twins.deploy, "b"), bias, strict=True)
    q = kit.activation(x, scale_d, 3)
    wanted = (q.astype(np.int64) @ expected.astype(np.int64) + bias).astype(np.float32) * ds
    np.testing.assert_array_equal(kit.run(twins.fake, {"x": x})["y"], wanted)
    kit.match(model, twins, {"x": x}, within=0.03)
    onnx.checker.check_model(twins.fake, full_check=True)


@pytest.mark.parametrize("shape", [(N,), (1, N), (M, N), (M, 1), (1, 1), (1,), ()], ids=str)
@pytest.mark.parametrize("trans_b", [0, 1])
def test_a_bias_of_any_shape_that_broadcasts_comes_out_right(kit, rng, shape, trans_b):
    model, x, constants, scale_w, scale_d = gemm(kit, rng, shape, transB=trans_b)
    twins = kit.twins(model, {"fc": kit.record(scale_w, scale_d=scale_d)})
    wanted = np.rint(constants["b"] / (scale_w * scale_d)).astype(np.int32)
    np.testing.assert_array_equal(kit.array(twins.deploy, "b"), wanted, strict=True)
    kit.match(model, twins, {"x": x}, within=0.03)


@pytest.mark.parametrize("alpha", [0.5, -2.0])
@pytest.mark.parametrize("beta", [0.25, 3.0, 0.0])
def test_alpha_and_beta_are_kept_and_come_out_right(kit, rng, alpha, beta):
    model, x, _, scale_w, scale_d = gemm(kit, rng, (N,), transB=1, alpha=alpha, beta=beta)
    twins = kit.twins(model, {"fc": kit.record(scale_w, scale_d=scale_d)})
    for twin in (twins.fake, twins.deploy):
        assert kit.attributes(kit.node(twin, "fc")) == {"alpha": alpha, "beta": beta, "transB": 0}
    kit.match(model, twins, {"x": x}, within=0.03)


def test_a_gemm_without_bias_works(kit, rng):
    model, x, _, scale_w, scale_d = gemm(kit, rng, transB=1)
    twins = kit.twins(model, {"fc": kit.record(scale_w, scale_d=scale_d)})
    kit.match(model, twins, {"x": x}, within=0.03)


def test_trans_a_is_refused(kit, rng):
    w = rng.normal(size=(K, N)).astype(np.float32)
    model = kit.model([helper.make_node("Gemm", ["x", "w"], ["y"], "fc", transA=1)], {"x": (K, M)}, ["y"], {"w": w})
    with pytest.raises(RecordLayerError, match=r"transA"):
        kit.twins(model, {"fc": kit.record()})


def test_one_weight_scale_per_output_is_refused(kit, rng):
    model, *_ = gemm(kit, rng)
    with pytest.raises(RecordValueError, match=r"scale_w.*has 4 values.*takes 1"):
        kit.twins(model, {"fc": kit.record([0.1] * N)})


def test_a_computed_bias_is_refused(kit):
    nodes = [helper.make_node("Relu", ["c"], ["b"], "r"), helper.make_node("Gemm", ["x", "w", "b"], ["y"], "fc")]
    model = kit.model(nodes, {"x": (2, 3), "c": (4,)}, ["y"], {"w": np.ones((3, 4), np.float32)})
    with pytest.raises(RecordLayerError, match=r"bias.*not constant"):
        kit.twins(model, {"fc": kit.record()})


def test_a_bias_that_does_not_broadcast_is_refused(kit, rng):
    model, *_ = gemm(kit, rng)
    node = model.graph.node[0]
    node.input.append("b")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(5, np.float32), "b"))
    with pytest.raises(RecordLayerError, match=r"bias 'b' has shape \[5\]"):
        kit.twins(model, {"fc": kit.record()})
