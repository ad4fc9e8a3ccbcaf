"""Names: unnamed and duplicate nodes, and new names that something has already."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from twinquant.errors import RecordLayerError

ONE = np.ones((2, 2, 1, 1), np.float32)


def conv(source, out, name="", weight="w"):
    return helper.make_node("Conv", [source, weight], [out], name)


def test_unnamed_nodes_are_called_by_their_position(kit, rng):
    nodes = [helper.make_node("Relu", ["x"], ["h"]), conv("h", "i"), conv("i", "y")]
    model = kit.model(nodes, {"x": (1, 2, 3, 3)}, ["y"], {"w": ONE})
    twins = kit.twins(model, {"node_2": kit.record(0.01)})
    assert kit.names(twins.deploy) == ["node_0", "node_1", "node_2.quant", "node_2", "node_2.dequant"]
    assert all(name for name in kit.names(twins.fake, constants=True))
    kit.match(model, twins, {"x": rng.normal(size=(1, 2, 3, 3)).astype(np.float32)}, within=0.1)


def test_a_node_that_is_called_like_the_position_of_an_unnamed_one_keeps_its_name(kit):
    nodes = [conv("x", "h"), conv("h", "y", "node_0")]
    model = kit.model(nodes, {"x": (1, 2, 3, 3)}, ["y"], {"w": ONE})
    twins = kit.twins(model, {"node_0": kit.record(0.01)})
    assert kit.names(twins.deploy) == ["node_0_1", "node_0.quant", "node_0", "node_0.dequant"]


def test_a_record_of_a_duplicate_name_is_refused(kit):
    nodes = [conv("x", "h", "c"), conv("h", "y", "c")]
    model = kit.model(nodes, {"x": (1, 2, 3, 3)}, ["y"], {"w": ONE})
    with pytest.raises(RecordLayerError, match=r"'c'.*2 nodes"):
        kit.twins(model, {"c": kit.record(0.01)})


def test_duplicate_names_that_no_record_names_do_no_harm(kit):
    nodes = [conv("x", "h", "c"), conv("h", "i", "c"), helper.make_node("Relu", ["i"], ["j"], "c"), conv("j", "y", "d")]
    model = kit.model(nodes, {"x": (1, 2, 3, 3)}, ["y"], {"w": ONE})
    twins = kit.twins(model, {"d": kit.record(0.01, scale_d=0.2)})
    assert kit.names(twins.deploy) == ["c", "c", "c", "d.quant", "d", "d.dequant"]


TAKEN = [
    "c.quant",
    "c.dequant",
    "c.mul",
    "c.tensor_balance_factor",
    "c.bias_quant",
    "c.quant.fakequant.mul",
    "c.quant.fakequant.round",
    "c.quant.fakequant.add",
    "c.quant.fakequant.clip",
    "c.quant.fakequant.sub",
    "c.quant.fakequant.scale",
    "c.quant.fakequant.offset",
    "c.quant.fakequant.min_val",
    "c.quant.fakequant.max_val",
    "c.fakedequant.mul",
    "c.fakedequant.dqscale",
]
TAKEN_TENSORS = [*(f"{name}.output0" for name in TAKEN), "c.dequant.param", "c_output0"]


@pytest.mark.parametrize("where", ["nodes", "tensors", "initializers", "inner tensors", "inputs"])
def test_new_names_that_are_taken_get_a_suffix(kit, rng, where):
    x = rng.normal(size=(1, 2, 3, 3)).astype(np.float32)
    w, b = rng.normal(size=(2, 2, 1, 1)).astype(np.float32), rng.normal(size=2).astype(np.float32)
    nodes, constants, inputs, outputs = [], {"w": w, "b": b}, {"x": x.shape}, ["y"]
    if where == "nodes":
        nodes = [helper.make_node("Neg", ["x"], [f"n{i}"], name) for i, name in enumerate(TAKEN)]
        outputs += [f"n{i}" for i in range(len(TAKEN))]
    elif where == "tensors":
        nodes = [helper.make_node("Neg", ["x"], [name], f"n{i}") for i, name in enumerate(TAKEN_TENSORS)]
        outputs += TAKEN_TENSORS
    elif where == "initializers":
        constants |= dict.fromkeys(TAKEN_TENSORS, np.float32([1]))
        nodes = [helper.make_node("Sum", TAKEN_TENSORS, ["s"], "sum")]
        outputs += ["s"]
    elif where == "inputs":
        inputs |= dict.fromkeys(TAKEN_TENSORS, (1,))
        nodes = [helper.make_node("Sum", TAKEN_TENSORS, ["s"], "sum")]
        outputs += ["s"]
    else:
        body = [helper.make_node("Neg", ["y0"], [name], name) for name in TAKEN_TENSORS]
        body.append(helper.make_node("Sum", TAKEN_TENSORS, ["s0"], "sum"))
        branch = helper.make_graph(body, "b", [], [helper.make_tensor_value_info("s0", 1, None)])
        constants["cond"] = np.array(True)
        outputs += ["s"]
    nodes.append(helper.make_node("Conv", ["x", "w", "b"], ["y"], "c"))
    if where == "inner tensors":
        nodes[-1].output[0] = "y0"
        nodes.append(helper.make_node("If", ["cond"], ["s"], "if", then_branch=branch, else_branch=branch))
        nodes.append(helper.make_node("Relu", ["y0"], ["y"], "r"))
    model = kit.model(nodes, inputs, outputs, constants)
    made = kit.record(
        kit.scale_of(w), scale_d=0.5, offset_d=0, act_type="INT4", wts_type="INT8", tensor_balance_factor=[1, 1]
    )
    twins = kit.twins(model, {"c": made})
    for twin in (twins.fake, twins.deploy):
        names = kit.names(twin, constants=True)
        assert len(set(names)) == len(names)
        tensors = [out for node in twin.graph.node for out in node.output]
        tensors += [t.name for t in twin.graph.initializer] + [i.name for i in twin.graph.input]
        assert len(set(tensors)) == len(tensors)
    feeds = {name: x if name == "x" else np.float32([2]) for name in inputs}
    kit.match(model, twins, feeds, within=0.3)
    onnx.checker.check_model(twins.fake, full_check=True)


def test_the_suffix_counts_up_until_the_name_is_free(kit):
    nodes = [
        helper.make_node("Neg", ["x"], ["a"], "c.quant"),
        helper.make_node("Neg", ["x"], ["b"], "c.quant_1"),
        conv("x", "y", "c"),
    ]
    model = kit.model(nodes, {"x": (1, 2, 3, 3)}, ["y", "a", "b"], {"w": ONE})
    twins = kit.twins(model, {"c": kit.record(0.01)})
    quant = kit.node(twins.deploy, "c.quant_2")
    assert (quant.op_type, list(quant.output)) == ("AscendQuant", ["c.quant_2.output0"])


def test_copies_of_shared_tensors_get_free_names(kit, rng):
    w = rng.normal(size=(2, 2, 1, 1)).astype(np.float32)
    nodes = [conv("x", "y", "a"), conv("x", "z", "b"), helper.make_node("Neg", ["w.b"], ["n"], "n")]
    model = kit.model(nodes, {"x": (1, 2, 3, 3)}, ["y", "z", "n"], {"w": w, "w.b": w})
    twins = kit.twins(model, {"a": kit.record(kit.scale_of(w)), "b": kit.record(kit.scale_of(w) * np.float32(1.5))})
    kit.match(model, twins, {"x": rng.normal(size=(1, 2, 3, 3)).astype(np.float32)}, within=0.1)


@pytest.mark.parametrize("name", ["a/b:0", "a{0}", "{}", "%s", "层 1", "x" * 300, "..", "a\nb", "'quoted'"])
def test_layer_names_may_hold_any_characters(kit, rng, name):
    w = rng.normal(size=(2, 2, 1, 1)).astype(np.float32)
    model = kit.model([conv("x", "y", name)], {"x": (1, 2, 3, 3)}, ["y"], {"w": w})
    twins = kit.twins(model, {name: kit.record(kit.scale_of(w))})
    assert kit.names(twins.deploy) == [f"{name}.quant", name, f"{name}.dequant"]
    kit.match(model, twins, {"x": rng.normal(size=(1, 2, 3, 3)).astype(np.float32)}, within=0.05)


def test_a_key_with_a_colon_is_the_node_of_exactly_that_name(kit):
    model = kit.model([conv("x", "h", "c"), conv("h", "y", "c:0")], {"x": (1, 2, 3, 3)}, ["y"], {"w": ONE})
    assert "c:0.quant" in kit.names(kit.twins(model, {"c:0": kit.record(0.01)}).deploy)


def test_a_key_of_a_layers_input_is_refused_as_tensor_quantization(kit):
    model = kit.model([conv("x", "y", "c")], {"x": (1, 2, 3, 3)}, ["y"], {"w": ONE})
    with pytest.raises(RecordLayerError, match=r"'c:0'.*single tensor.*save_model"):
        kit.twins(model, {"c:0": kit.record(0.01)})


def test_an_unknown_layer_is_refused_with_the_names_that_are_close(kit):
    model = kit.model([conv("x", "y", "layer1.conv")], {"x": (1, 2, 3, 3)}, ["y"], {"w": ONE})
    with pytest.raises(RecordLayerError, match=r"'layer1.cnov'.*did you mean 'layer1.conv'"):
        kit.twins(model, {"layer1.cnov": kit.record(0.01)})


def test_a_custom_operator_called_conv_is_refused_as_such(kit):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "c", domain="my.ops")]
    model = kit.model(nodes, {"x": (1, 2, 3, 3)}, ["y"], {"w": ONE}, imports=[("my.ops", 1)])
    with pytest.raises(RecordLayerError, match=r"'c'.*my\.ops"):
        kit.twins(model, {"c": kit.record(0.01)})


def test_a_constant_node_can_hold_a_name_that_new_nodes_want(kit, rng):
    held = numpy_helper.from_array(np.float32([1]))
    nodes = [
        helper.make_node("Constant", [], ["c.quant.fakequant.scale.output0"], "c.quant.fakequant.scale", value=held),
        conv("x", "h", "c"),
        helper.make_node("Add", ["h", "c.quant.fakequant.scale.output0"], ["y"], "add"),
    ]
    model = kit.model(nodes, {"x": (1, 2, 3, 3)}, ["y"], {"w": ONE})
    twins = kit.twins(model, {"c": kit.record(0.01)})
    kit.match(model, twins, {"x": rng.normal(size=(1, 2, 3, 3)).astype(np.float32)}, within=0.1)
