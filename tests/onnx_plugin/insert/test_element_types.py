"""float16, bfloat16 and float64 models: the layer runs in float32 between two casts."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from twinquant.errors import RecordLayerError

FLOAT16, DOUBLE, BFLOAT16 = TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16
DTYPES = {FLOAT16: np.float16, DOUBLE: np.float64, BFLOAT16: ml_dtypes.bfloat16}


def case(kit, rng, op_type, kind, opset=13):
    """A layer of an element type with its data; the output `y` is read by a Cast and is a graph output."""
    dtype = DTYPES[kind]
    x_shape, w_shape = {
        "Conv": ((1, 2, 4, 4), (3, 2, 3, 3)),
        "ConvTranspose": ((1, 2, 4, 4), (2, 3, 2, 2)),
        "Gemm": ((2, 4), (3, 4)),
        "MatMul": ((2, 4), (4, 3)),
        "MatMul Add": ((2, 4), (4, 3)),
        "AveragePool": ((1, 2, 4, 4), ()),
    }[op_type]
    x = rng.normal(size=x_shape).astype(dtype)
    constants = {}
    if op_type != "AveragePool":
        constants["w"] = rng.normal(size=w_shape).astype(dtype)
    if op_type not in ("AveragePool", "MatMul"):
        constants["b"] = rng.normal(size=3).astype(dtype)
    settings = {"Gemm": {"transB": 1}, "AveragePool": {"kernel_shape": [2, 2]}}.get(op_type, {})
    if op_type == "MatMul Add":
        nodes = [helper.make_node("MatMul", ["x", "w"], ["h"], "l"), helper.make_node("Add", ["h", "b"], ["y"], "a")]
    else:
        nodes = [helper.make_node(op_type, ["x", *constants], ["y"], "l", **settings)]
    nodes.append(helper.make_node("Cast", ["y"], ["z"], "tail", to=TensorProto.FLOAT))
    model = kit.model(nodes, {"x": kit.Typed(kind, x_shape)}, {"z": TensorProto.FLOAT}, constants, opset=opset)
    return model, x, constants


OPERATORS = ["Conv", "ConvTranspose", "Gemm", "MatMul", "MatMul Add", "AveragePool"]


@pytest.mark.parametrize("opset", [9, 13, 17, 21])
@pytest.mark.parametrize("output", ["inner", "graph output"])
@pytest.mark.parametrize("kind", [FLOAT16, DOUBLE], ids=["float16", "float64"])
@pytest.mark.parametrize("op_type", OPERATORS)
def test_both_twins_load_and_return_to_the_models_type(kit, rng, op_type, kind, output, opset):
    if op_type == "Gemm" and opset == 9 and kind == FLOAT16:
        opset = 11
    model, x, constants = case(kit, rng, op_type, kind, opset)
    if output == "graph output":
        model.graph.output.append(helper.make_tensor_value_info("y", kind, None))
    model = onnx.shape_inference.infer_shapes(model)
    scale_w = kit.scale_of(constants["w"].astype(np.float32)) if constants else 1.0
    twins = kit.twins(model, {"l": kit.record(scale_w, scale_d=np.abs(x).max() / 120)})
    names, name = kit.names(twins.fake), {FLOAT16: "float16", DOUBLE: "float64"}[kind]
    assert names[0] == "l.quant.fakequant.cast"
    assert kit.attributes(kit.node(twins.fake, "l.quant.fakequant.cast")) == {"to": TensorProto.FLOAT}
    assert kit.attributes(kit.node(twins.fake, "l.fakedequant.cast")) == {"to": kind}
    dequant = kit.attributes(kit.node(twins.deploy, "l.dequant"))
    assert dequant == {"dtype": int(name == "float16")}
    assert ("l.dequant.cast" in kit.names(twins.deploy)) == (name == "float64")
    assert kit.node(twins.deploy, "l.quant").input[0] == "x"
    for tensor in constants:
        assert kit.array(twins.fake, tensor).dtype == np.float32
    got, wanted = kit.run(twins.fake, {"x": x}), kit.run_deploy(twins.deploy, {"x": x})
    for tensor, values in got.items():
        np.testing.assert_array_equal(values, wanted[tensor], strict=True)
    floats = x.astype(np.float32), {key: held.astype(np.float32) for key, held in constants.items()}
    nodes = [node for node in model.graph.node if node.name != "tail"]
    in_float = kit.model(nodes, {"x": x.shape}, ["y"], floats[1], opset=opset)
    reference = kit.run(in_float, {"x": floats[0]})["y"]
    assert np.abs(got["z"] - reference).max() < 0.05 * np.abs(reference).max()
    onnx.checker.check_model(twins.fake, full_check=True)


@pytest.mark.parametrize("op_type", OPERATORS)
def test_bfloat16_layers_run_in_float32_between_casts(kit, rng, op_type):
    model, x, constants = case(kit, rng, op_type, BFLOAT16)
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.FLOAT
    model.graph.input[0].name = "x0"
    model.graph.node.insert(0, helper.make_node("Cast", ["x0"], ["x"], "head", to=BFLOAT16))
    scale_w = kit.scale_of(constants["w"].astype(np.float32)) if constants else 1.0
    scale_d = np.abs(x.astype(np.float32)).max() / np.float32(120)
    twins = kit.twins(model, {"l": kit.record(scale_w, scale_d=scale_d)})
    assert kit.attributes(kit.node(twins.deploy, "l.dequant")) == {"dtype": 0}
    assert kit.attributes(kit.node(twins.deploy, "l.dequant.cast")) == {"to": BFLOAT16}
    if constants:
        w = constants["w"].astype(np.float32)
        w = w.T if op_type == "Gemm" else w
        np.testing.assert_array_equal(kit.array(twins.deploy, "w"), kit.integers(w, scale_w))
    if "b" in constants:
        bias = np.rint(constants["b"].astype(np.float32) / (scale_w * scale_d)).astype(np.int32)
        np.testing.assert_array_equal(kit.array(twins.deploy, "b"), bias)
    floats = {key: held.astype(np.float32) for key, held in constants.items()}
    nodes = [node for node in model.graph.node if node.name not in ("tail", "head")]
    reference = kit.run(kit.model(nodes, {"x": x.shape}, ["y"], floats), {"x": x.astype(np.float32)})["y"]
    got = kit.run(twins.fake, {"x0": x.astype(np.float32)})["z"]
    assert np.abs(got - reference).max() < 0.05 * np.abs(reference).max()


def test_a_float32_model_has_no_casts(kit, rng):
    w = rng.normal(size=(2, 2, 1, 1)).astype(np.float32)
    model = kit.model([helper.make_node("Conv", ["x", "w"], ["y"], "l")], {"x": (1, 2, 3, 3)}, ["y"], {"w": w})
    twins = kit.twins(model, {"l": kit.record(0.1)})
    assert not [node for twin in (twins.fake, twins.deploy) for node in twin.graph.node if node.op_type == "Cast"]


def test_the_type_of_the_tensor_decides_and_the_noted_type_is_removed(kit, rng):
    w = rng.normal(size=(2, 2, 1, 1)).astype(np.float32)
    noted = [
        helper.make_node("Relu", ["x"], ["h"], "r", op_data_type="float16"),
        helper.make_node("Conv", ["h", "w"], ["y"], "l", op_data_type="float16", group=1),
    ]
    model = kit.model(noted, {"x": (1, 2, 3, 3)}, ["y"], {"w": w})
    twins = kit.twins(model, {"l": kit.record(0.1)})
    for twin in (twins.fake, twins.deploy):
        assert kit.attributes(kit.node(twin, "l")) == {"group": 1}
        assert kit.attributes(kit.node(twin, "r")) == {}
        assert not [node for node in twin.graph.node if node.op_type == "Cast"]
    assert kit.attributes(kit.node(twins.deploy, "l.dequant")) == {"dtype": 0}


def test_the_noted_type_is_removed_inside_subgraphs(kit, rng):
    branch = helper.make_graph(
        [helper.make_node("Neg", ["h"], ["t"], "n", op_data_type="float32")],
        "b",
        [],
        [helper.make_tensor_value_info("t", 1, None)],
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], "l"),
        helper.make_node("If", ["cond"], ["y"], "if", then_branch=branch, else_branch=branch),
    ]
    constants = {"w": np.ones((2, 2, 1, 1), np.float32), "cond": np.array(True)}
    model = kit.model(nodes, {"x": (1, 2, 3, 3)}, ["y"], constants)
    twins = kit.twins(model, {"l": kit.record(0.1)})
    for twin in (twins.fake, twins.deploy):
        made = kit.attributes(kit.node(twin, "if"))
        assert not made["then_branch"].node[0].attribute
        assert not made["else_branch"].node[0].attribute


def test_the_type_is_inferred_behind_other_nodes(kit, rng):
    w = rng.normal(size=(2, 2, 1, 1)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], "c", to=FLOAT16),
        helper.make_node("Relu", ["h"], ["r"], "r"),
        helper.make_node("AveragePool", ["r"], ["p"], "pool", kernel_shape=[2, 2]),
        helper.make_node("Conv", ["p", "w"], ["q"], "l"),
        helper.make_node("Cast", ["q"], ["y"], "d", to=TensorProto.FLOAT),
    ]
    model = kit.model(nodes, {"x": (1, 2, 3, 3)}, ["y"], {"w": w})
    twins = kit.twins(model, {"l": kit.record(0.1), "pool": kit.record(1.0)})
    assert kit.attributes(kit.node(twins.deploy, "l.dequant")) == {"dtype": 1}
    assert kit.attributes(kit.node(twins.deploy, "pool.dequant")) == {"dtype": 1}
    kit.match(model, twins, {"x": rng.normal(size=(1, 2, 3, 3)).astype(np.float32)}, within=0.1)


def test_behind_an_unknown_operator_the_weight_tells_the_type(kit, rng):
    nodes = [
        helper.make_node("Mystery", ["x"], ["h"], "c", domain="my.ops"),
        helper.make_node("Conv", ["h", "w"], ["y"], "l"),
    ]
    model = kit.model(
        nodes, {"x": (1, 2, 3, 3)}, {"y": FLOAT16}, {"w": np.ones((2, 2, 1, 1), np.float16)}, imports=[("my.ops", 1)]
    )
    twins = kit.twins(model, {"l": kit.record(0.1)})
    assert kit.attributes(kit.node(twins.deploy, "l.dequant")) == {"dtype": 1}


def test_behind_an_unknown_operator_the_declared_result_tells_a_pools_type(kit):
    nodes = [
        helper.make_node("Mystery", ["x"], ["h"], "c", domain="my.ops"),
        helper.make_node("AveragePool", ["h"], ["y"], "l", kernel_shape=[2, 2]),
    ]
    model = kit.model(nodes, {"x": (1, 2, 3, 3)}, {"y": FLOAT16}, imports=[("my.ops", 1)])
    twins = kit.twins(model, {"l": kit.record(1.0)})
    assert kit.attributes(kit.node(twins.deploy, "l.dequant")) == {"dtype": 1}


def test_layers_without_any_known_type_are_taken_for_float32(kit):
    nodes = [
        helper.make_node("Mystery", ["x"], ["h"], "c", domain="my.ops"),
        helper.make_node("AveragePool", ["h"], ["i"], "l", kernel_shape=[2, 2]),
        helper.make_node("Mystery", ["i"], ["y"], "d", domain="my.ops"),
    ]
    model = kit.model(nodes, {"x": (1, 2, 3, 3)}, ["y"], imports=[("my.ops", 1)])
    twins = kit.twins(model, {"l": kit.record(1.0)})
    assert kit.attributes(kit.node(twins.deploy, "l.dequant")) == {"dtype": 0}
    assert "l.quant.fakequant.cast" not in kit.names(twins.fake)


def test_an_integer_input_is_refused(kit):
    model = kit.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "l")],
        {"x": kit.Typed(TensorProto.INT32, (2, 3))},
        {"y": TensorProto.INT32},
        {"w": np.ones((3, 2), np.float32)},
    )
    with pytest.raises(RecordLayerError, match=r"'l'.*INT32.*not a float type"):
        kit.twins(model, {"l": kit.record()})


def test_a_bias_of_64_bits_that_leaves_float32_is_refused_without_a_warning(kit):
    from twinquant.errors import ModelContentError

    model = kit.model(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "l")],
        {"x": kit.Typed(DOUBLE, (2, 3))},
        {"y": DOUBLE},
        {"w": np.ones((3, 2)), "b": np.array([0, 1e300])},
    )
    with pytest.raises(ModelContentError, match=r"'l'.*channel 1"):
        kit.twins(model, {"l": kit.record()})


def test_a_weight_of_64_bits_that_leaves_float32_is_refused_without_a_warning(kit):
    from twinquant.errors import ModelContentError

    model = kit.model(
        [helper.make_node("Gemm", ["x", "w"], ["y"], "l")],
        {"x": kit.Typed(DOUBLE, (2, 2))},
        {"y": DOUBLE},
        {"w": np.array([[1, 1e300], [0, 0]])},
    )
    with pytest.raises(ModelContentError, match=r"'l'.*infinity"):
        kit.twins(model, {"l": kit.record()})
