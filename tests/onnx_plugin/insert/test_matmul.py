"""MatMul: where its weight comes from, and when the Add behind it is its bias."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from twinquant.errors import RecordLayerError, RecordValueError

K, N = 6, 4


def scales(x, w):
    return np.abs(w).max() / np.float32(127), np.abs(x).max() / np.float32(120)


def matmul(kit, rng, x_shape=(3, K), **settings):
    x, w = rng.normal(size=x_shape).astype(np.float32), rng.normal(size=(K, N)).astype(np.float32)
    model = kit.model([helper.make_node("MatMul", ["x", "w"], ["y"], "m")], {"x": x.shape}, ["y"], {"w": w}, **settings)
    return model, x, w


@pytest.mark.parametrize("x_shape", [(K,), (1, K), (3, K), (2, 3, K), (2, 1, 3, K), (1, 2, 2, 3, K)], ids=str)
def test_activations_of_any_rank_keep_their_output_shape(kit, rng, x_shape):
    model, x, w = matmul(kit, rng, x_shape)
    scale_w, scale_d = scales(x, w)
    twins = kit.twins(model, {"m": kit.record(scale_w, scale_d=scale_d)})
    weight = kit.integers(w, scale_w)
    np.testing.assert_array_equal(kit.array(twins.deploy, "w"), weight, strict=True)
    product = kit.activation(x, scale_d, 3).astype(np.int64) @ weight.astype(np.int64)
    wanted = product.astype(np.float32) * (scale_w * scale_d)
    np.testing.assert_array_equal(kit.run(twins.fake, {"x": x})["y"], wanted, strict=True)
    kit.match(model, twins, {"x": x}, within=0.03)
    onnx.checker.check_model(twins.fake, full_check=True)


def test_an_input_of_unknown_rank_keeps_its_output_shape(kit, rng):
    w = rng.normal(size=(K, N)).astype(np.float32)
    model = kit.model([helper.make_node("MatMul", ["x", "w"], ["y"], "m")], {"x": kit.Typed(1, None)}, ["y"], {"w": w})
    twins = kit.twins(model, {"m": kit.record(scales(w, w)[0], scale_d=0.03)})
    for shape in ((K,), (2, K), (2, 2, K)):
        kit.match(model, twins, {"x": rng.normal(size=shape).astype(np.float32)}, within=0.05)


@pytest.mark.parametrize("perm", [None, [1, 0]])
@pytest.mark.parametrize("identities", ["none", "before", "behind", "both"])
@pytest.mark.parametrize("as_node", [False, True], ids=["initializer", "Constant"])
def test_a_weight_behind_a_transpose_is_quantized_where_it_is_stored(kit, rng, perm, identities, as_node):
    x, stored = rng.normal(size=(3, K)).astype(np.float32), rng.normal(size=(N, K)).astype(np.float32)
    nodes = [helper.make_node("Constant", [], ["w"], "k", value=numpy_helper.from_array(stored))] if as_node else []
    current = "w"
    for op_type in {"none": "T", "before": "IT", "behind": "TI", "both": "IITI"}[identities]:
        following = f"{current}{op_type.lower()}"
        settings = {"perm": perm} if op_type == "T" and perm else {}
        kind = {"T": "Transpose", "I": "Identity"}[op_type]
        nodes.append(helper.make_node(kind, [current], [following], f"{kind}_{following}", **settings))
        current = following
    nodes.append(helper.make_node("MatMul", ["x", current], ["y"], "m"))
    model = kit.model(nodes, {"x": x.shape}, ["y"], {} if as_node else {"w": stored})
    scale_w, scale_d = scales(x, stored)
    twins = kit.twins(model, {"m": kit.record(scale_w, scale_d=scale_d)})
    np.testing.assert_array_equal(kit.array(twins.deploy, "w"), kit.integers(stored, scale_w), strict=True)
    for twin in (twins.fake, twins.deploy):
        assert [n.op_type for n in twin.graph.node if n.op_type in ("Transpose", "Identity")] == [
            n.op_type for n in nodes if n.op_type in ("Transpose", "Identity")
        ]
    kit.match(model, twins, {"x": x}, within=0.03)
    onnx.checker.check_model(twins.fake, full_check=True)


def test_a_transpose_that_moves_nothing_is_like_an_identity(kit, rng):
    x, w = rng.normal(size=(3, K)).astype(np.float32), rng.normal(size=(K, N)).astype(np.float32)
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], "t", perm=[0, 1]),
        helper.make_node("MatMul", ["x", "t"], ["y"], "m"),
    ]
    model = kit.model(nodes, {"x": x.shape}, ["y"], {"w": w})
    scale_w, scale_d = kit.scale_of(w, 4), np.abs(x).max() / np.float32(120)
    twins = kit.twins(model, {"m": kit.record(scale_w, scale_d=scale_d, wts_type="INT4")})
    assert kit.array(twins.deploy, "w").shape == (K // 2, N)
    kit.match(model, twins, {"x": x}, within=0.5, packed_axes={"w": 0})


def refused(kit, nodes, inputs, constants, reason):
    model = kit.model(nodes, inputs, ["y"], constants)
    with pytest.raises(RecordLayerError, match=reason):
        kit.twins(model, {"m": kit.record()})


def test_a_computed_weight_is_refused(kit):
    refused(
        kit, [helper.make_node("MatMul", ["x", "w"], ["y"], "m")], {"x": (2, 3), "w": (3, 4)}, {}, "'w'.*not constant"
    )


def test_a_constant_on_input_0_is_refused(kit):
    node = helper.make_node("MatMul", ["w", "x"], ["y"], "m")
    refused(kit, [node], {"x": (3, 4)}, {"w": np.ones((2, 3), np.float32)}, "weight.*input 1.*not constant")


@pytest.mark.parametrize("rank", [1, 3])
def test_a_weight_of_another_rank_than_2_is_refused(kit, rank):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "m")
    w = np.ones((2, 3, 4)[:rank], np.float32)
    refused(kit, [node], {"x": (2, 2, w.shape[-2] if rank > 1 else w.size)}, {"w": w}, f"rank {rank}")


@pytest.mark.parametrize("perm", [None, [0, 2, 1]])
def test_a_transposed_weight_of_rank_3_is_refused_for_its_rank(kit, perm):
    settings = {"perm": perm} if perm else {}
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], "t", **settings),
        helper.make_node("MatMul", ["x", "t"], ["y"], "m"),
    ]
    shape = (2, 4, 3) if perm else (4, 3, 2)
    refused(kit, nodes, {"x": (2, 5, 3)}, {"w": np.ones(shape, np.float32)}, "rank 3")


def test_a_weight_behind_two_transposes_is_refused(kit):
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], "t"),
        helper.make_node("Transpose", ["t"], ["u"], "u"),
        helper.make_node("MatMul", ["x", "u"], ["y"], "m"),
    ]
    refused(kit, nodes, {"x": (2, 3)}, {"w": np.ones((3, 4), np.float32)}, "constant")


def test_an_integer_weight_is_refused(kit):
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "m")
    model = kit.model([node], {"x": kit.Typed(6, (2, 3))}, {"y": 6}, {"w": np.ones((3, 4), np.int32)})
    with pytest.raises(RecordLayerError, match=r"INT32.*not a float type"):
        kit.twins(model, {"m": kit.record()})


def test_one_weight_scale_per_output_is_refused(kit, rng):
    model, *_ = matmul(kit, rng)
    with pytest.raises(RecordValueError, match=r"scale_w.*has 4 values.*takes 1"):
        kit.twins(model, {"m": kit.record([0.1] * N)})


# The Add behind a MatMul.


def with_add(kit, rng, bias, inputs=("h", "b"), more=(), outputs=("y",), x_shape=(3, K), bias_nodes=()):
    x, w = rng.normal(size=x_shape).astype(np.float32), rng.normal(size=(K, N)).astype(np.float32)
    constants = {"w": w} if bias_nodes else {"w": w, "b": bias}
    nodes = [
        *bias_nodes,
        helper.make_node("MatMul", ["x", "w"], ["h"], "m"),
        helper.make_node("Add", list(inputs), ["s"], "add"),
        helper.make_node("Relu", ["s"], ["y"], "r"),
        *more,
    ]
    model = kit.model(nodes, {"x": x.shape}, outputs, constants)
    scale_w, scale_d = scales(x, w)
    return model, x, kit.twins(model, {"m": kit.record(scale_w, scale_d=scale_d)}), scale_w * scale_d


def assert_dequantized_behind(kit, twins, producer):
    tensor = {"m": "h", "add": "s"}[producer]
    assert list(kit.node(twins.deploy, "m.dequant").input) == [tensor, "m.dequant.param"]
    assert kit.node(twins.fake, "m.fakedequant.mul").input[0] == tensor


@pytest.mark.parametrize("x_shape", [(3, K), (2, 3, K), (K,)], ids=str)
def test_a_constant_vector_on_input_1_becomes_the_bias(kit, rng, x_shape):
    bias = rng.normal(size=N).astype(np.float32)
    model, x, twins, ds = with_add(kit, rng, bias, x_shape=x_shape)
    assert_dequantized_behind(kit, twins, "add")
    np.testing.assert_array_equal(kit.array(twins.deploy, "b"), np.rint(bias / ds).astype(np.int32), strict=True)
    kit.match(model, twins, {"x": x}, within=0.03)


def test_the_bias_may_come_from_a_constant_behind_an_identity(kit, rng):
    bias = rng.normal(size=N).astype(np.float32)
    makers = [
        helper.make_node("Constant", [], ["b0"], "k", value=numpy_helper.from_array(bias)),
        helper.make_node("Identity", ["b0"], ["b"], "i"),
    ]
    model, x, twins, ds = with_add(kit, rng, None, bias_nodes=makers)
    assert_dequantized_behind(kit, twins, "add")
    np.testing.assert_array_equal(kit.array(twins.deploy, "b0"), np.rint(bias / ds).astype(np.int32), strict=True)
    kit.match(model, twins, {"x": x}, within=0.03)


def stays_float(kit, model, x, twins, bias="b"):
    assert_dequantized_behind(kit, twins, "m")
    assert kit.array(twins.deploy, bias).dtype == np.float32
    assert "m.dequant.output0" in kit.node(twins.deploy, "add").input
    kit.match(model, twins, {"x": x}, within=0.03)


def test_a_constant_on_input_0_of_the_add_stays_float(kit, rng):
    model, x, twins, _ = with_add(kit, rng, rng.normal(size=N).astype(np.float32), inputs=("b", "h"))
    stays_float(kit, model, x, twins)


@pytest.mark.parametrize("shape", [(1,), (), (1, N), (3, N), (3, 1), (1, 1)], ids=str)
def test_a_bias_that_is_no_vector_of_n_values_stays_float(kit, rng, shape):
    model, x, twins, _ = with_add(kit, rng, rng.normal(size=shape).astype(np.float32))
    stays_float(kit, model, x, twins)


def test_a_bias_of_one_value_is_fused_where_n_is_1(kit, rng):
    x, w = rng.normal(size=(3, K)).astype(np.float32), rng.normal(size=(K, 1)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "m"), helper.make_node("Add", ["h", "b"], ["y"], "add")]
    model = kit.model(nodes, {"x": x.shape}, ["y"], {"w": w, "b": np.float32([0.7])})
    scale_w, scale_d = scales(x, w)
    twins = kit.twins(model, {"m": kit.record(scale_w, scale_d=scale_d)})
    assert kit.array(twins.deploy, "b").dtype == np.int32
    kit.match(model, twins, {"x": x}, within=0.03)


def test_a_second_reader_of_the_product_keeps_the_add_float(kit, rng):
    more = [helper.make_node("Neg", ["h"], ["z"], "n")]
    model, x, twins, _ = with_add(kit, rng, rng.normal(size=N).astype(np.float32), more=more, outputs=("y", "z"))
    stays_float(kit, model, x, twins)


def test_a_product_that_is_a_graph_output_keeps_the_add_float(kit, rng):
    model, x, twins, _ = with_add(kit, rng, rng.normal(size=N).astype(np.float32), outputs=("y", "h"))
    assert kit.node(twins.deploy, "m.dequant").output[0] == "h"
    assert kit.node(twins.deploy, "m").output[0] == "m_output0"
    assert kit.array(twins.deploy, "b").dtype == np.float32
    kit.match(model, twins, {"x": x}, within=0.03)


def test_a_product_that_a_subgraph_captures_keeps_the_add_float(kit, rng):
    body = helper.make_graph(
        [helper.make_node("Neg", ["h"], ["z0"])], "b", [], [helper.make_tensor_value_info("z0", 1, None)]
    )
    more = [
        helper.make_node("Constant", [], ["cond"], "cond", value=numpy_helper.from_array(np.array(True))),
        helper.make_node("If", ["cond"], ["z"], "if", then_branch=body, else_branch=body),
    ]
    model, x, twins, _ = with_add(kit, rng, rng.normal(size=N).astype(np.float32), more=more, outputs=("y", "z"))
    stays_float(kit, model, x, twins)


def test_adding_the_product_to_itself_is_no_bias(kit, rng):
    x, w = rng.normal(size=(3, K)).astype(np.float32), rng.normal(size=(K, N)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "m"), helper.make_node("Add", ["h", "h"], ["y"], "add")]
    model = kit.model(nodes, {"x": x.shape}, ["y"], {"w": w})
    scale_w, scale_d = scales(x, w)
    twins = kit.twins(model, {"m": kit.record(scale_w, scale_d=scale_d)})
    assert list(kit.node(twins.deploy, "add").input) == ["m.dequant.output0"] * 2
    kit.match(model, twins, {"x": x}, within=0.03)


def test_a_computed_addend_stays_float(kit, rng):
    x, w = rng.normal(size=(3, K)).astype(np.float32), rng.normal(size=(K, N)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "m"),
        helper.make_node("Add", ["h", "b"], ["y"], "add"),
    ]
    model = kit.model(nodes, {"x": x.shape, "b": (N,)}, ["y"], {"w": w})
    scale_w, scale_d = scales(x, w)
    twins = kit.twins(model, {"m": kit.record(scale_w, scale_d=scale_d)})
    assert_dequantized = list(kit.node(twins.deploy, "m.dequant").input)
    assert assert_dequantized == ["h", "m.dequant.param"]
    kit.match(model, twins, {"x": x, "b": rng.normal(size=N).astype(np.float32)}, within=0.03)


def test_an_add_of_another_domain_is_no_bias(kit):
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "m"),
        helper.make_node("Add", ["h", "b"], ["y"], "add", domain="my.ops"),
    ]
    constants = {"w": np.ones((K, N), np.float32), "b": np.ones(N, np.float32)}
    model = kit.model(nodes, {"x": (3, K)}, ["y"], constants, imports=[("my.ops", 1)])
    twins = kit.twins(model, {"m": kit.record()})
    assert_dequantized_behind_m = list(kit.node(twins.deploy, "add").input)
    assert assert_dequantized_behind_m == ["m.dequant.output0", "b"]
    assert kit.array(twins.deploy, "b").dtype == np.float32


def test_where_add_is_a_graph_output_its_own_output_is_renamed(kit, rng):
    x, w = rng.normal(size=(3, K)).astype(np.float32), rng.normal(size=(K, N)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "m"), helper.make_node("Add", ["h", "b"], ["y"], "plus")]
    model = kit.model(nodes, {"x": x.shape}, ["y"], {"w": w, "b": np.ones(N, np.float32)})
    scale_w, scale_d = scales(x, w)
    twins = kit.twins(model, {"m": kit.record(scale_w, scale_d=scale_d)})
    for twin in (twins.fake, twins.deploy):
        assert kit.node(twin, "plus").output[0] == "plus_output0"
    dequant = kit.node(twins.deploy, "m.dequant")
    assert (list(dequant.input), list(dequant.output)) == (["plus_output0", "m.dequant.param"], ["y"])
    kit.match(model, twins, {"x": x}, within=0.03)
