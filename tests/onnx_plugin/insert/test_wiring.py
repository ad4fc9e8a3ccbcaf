"""Who reads the dequantized tensors: graph outputs, later layers, and subgraphs."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from twinquant.errors import RecordLayerError


@pytest.fixture
def w(rng):
    return rng.normal(size=(2, 2, 1, 1)).astype(np.float32)


@pytest.fixture
def x(rng):
    return rng.normal(size=(1, 2, 3, 3)).astype(np.float32)


def value(name, kind=1, shape=None):
    return helper.make_tensor_value_info(name, kind, shape)


def test_a_layer_whose_output_is_a_graph_output_gives_its_name_to_the_dequantization(kit, x, w):
    model = kit.model([helper.make_node("Conv", ["x", "w"], ["y"], "c")], {"x": x.shape}, ["y"], {"w": w})
    twins = kit.twins(model, {"c": kit.record(kit.scale_of(w))})
    for twin, last in ((twins.fake, "c.fakedequant.mul"), (twins.deploy, "c.dequant")):
        assert kit.node(twin, "c").output[0] == kit.node(twin, last).input[0] == "c_output0"
        assert kit.node(twin, last).output[0] == "y"
        assert [output.name for output in twin.graph.output] == ["y"]


def test_a_graph_output_that_other_nodes_read_too(kit, x, w):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], "a"),
        helper.make_node("Relu", ["h"], ["r"], "r"),
        helper.make_node("Conv", ["h", "w"], ["y"], "b"),
    ]
    model = kit.model(nodes, {"x": x.shape}, ["h", "y", "r"], {"w": w})
    made = kit.record(kit.scale_of(w), scale_d=0.2)
    twins = kit.twins(model, {"a": made, "b": made})
    assert kit.node(twins.deploy, "r").input[0] == kit.node(twins.deploy, "b.quant").input[0] == "h"
    kit.match(model, twins, {"x": x}, within=0.1)


def test_a_layer_that_nobody_reads_stays(kit, x, w):
    nodes = [helper.make_node("Conv", ["x", "w"], ["dead"], "d"), helper.make_node("Conv", ["x", "w"], ["y"], "c")]
    model = kit.model(nodes, {"x": x.shape}, ["y"], {"w": w})
    made = kit.record(kit.scale_of(w))
    twins = kit.twins(model, {"d": made, "c": made})
    assert kit.names(twins.deploy) == ["d.quant", "d", "d.dequant", "c", "c.dequant"]
    kit.match(model, twins, {"x": x}, within=0.05)


def test_an_if_that_captures_the_output_reads_the_dequantized_tensor(kit, x, w):
    then = helper.make_graph([helper.make_node("Neg", ["h"], ["t"])], "then", [], [value("t")])
    other = helper.make_graph([helper.make_node("Add", ["h", "h"], ["e"])], "else", [], [value("e")])
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], "c"),
        helper.make_node("If", ["cond"], ["y"], "if", then_branch=then, else_branch=other),
    ]
    model = kit.model(nodes, {"x": x.shape, "cond": kit.Typed(TensorProto.BOOL, ())}, ["y"], {"w": w})
    twins = kit.twins(model, {"c": kit.record(kit.scale_of(w))})
    for cond in (True, False):
        kit.match(model, twins, {"x": x, "cond": np.array(cond)}, within=0.05)


def test_a_nested_subgraph_reads_the_dequantized_tensor_but_a_shadowing_name_stays(kit, x, w):
    deepest = helper.make_graph([helper.make_node("Neg", ["h"], ["t2"])], "deep", [], [value("t2")])
    middle = helper.make_graph(
        [helper.make_node("If", ["cond"], ["t1"], then_branch=deepest, else_branch=deepest)], "mid", [], [value("t1")]
    )
    # The body's own input has the name of the outer tensor: it is another tensor.
    body = helper.make_graph(
        [
            helper.make_node("Add", ["h", "h"], ["h_out"]),
            helper.make_node("Identity", ["c_in"], ["c_out"]),
        ],
        "body",
        [value("i", TensorProto.INT64, ()), value("c_in", TensorProto.BOOL, ()), value("h")],
        [value("c_out", TensorProto.BOOL, ()), value("h_out")],
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], "c"),
        helper.make_node("If", ["cond"], ["y"], "if", then_branch=middle, else_branch=middle),
    ]
    model = kit.model(nodes, {"x": x.shape, "cond": kit.Typed(TensorProto.BOOL, ())}, ["y"], {"w": w})
    twins = kit.twins(model, {"c": kit.record(kit.scale_of(w))})
    kit.match(model, twins, {"x": x, "cond": np.array(True)}, within=0.05)

    loop = helper.make_node("Loop", ["trips", "cond", "x"], ["z"], "loop", body=body)
    model = kit.model(
        [nodes[0], helper.make_node("Neg", ["h"], ["y"], "n"), loop],
        {"x": x.shape, "cond": kit.Typed(TensorProto.BOOL, ())},
        ["y", "z"],
        {"w": w, "trips": np.array(2, np.int64)},
    )
    twins = kit.twins(model, {"c": kit.record(kit.scale_of(w))})
    kept = kit.attributes(kit.node(twins.deploy, "loop"))["body"]
    assert kept == body


def test_a_loop_that_captures_the_output_reads_the_dequantized_tensor(kit, x, w):
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "h"], ["s_out"]), helper.make_node("Identity", ["c_in"], ["c_out"])],
        "body",
        [value("i", TensorProto.INT64, ()), value("c_in", TensorProto.BOOL, ()), value("s")],
        [value("c_out", TensorProto.BOOL, ()), value("s_out")],
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], "c"),
        helper.make_node("Loop", ["trips", "", "x"], ["y"], "loop", body=body),
    ]
    model = kit.model(nodes, {"x": x.shape}, ["y"], {"w": w, "trips": np.array(3, np.int64)})
    kit.match(model, kit.twins(model, {"c": kit.record(kit.scale_of(w))}), {"x": x}, within=0.05)


def test_a_scan_that_captures_the_output_reads_the_dequantized_tensor(kit, x, w):
    body = helper.make_graph([helper.make_node("Add", ["e", "h"], ["o"])], "body", [value("e")], [value("o")])
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], "c"),
        helper.make_node("Scan", ["x"], ["y"], "scan", body=body, num_scan_inputs=1),
    ]
    model = kit.model(nodes, {"x": x.shape}, ["y"], {"w": w})
    kit.match(model, kit.twins(model, {"c": kit.record(kit.scale_of(w))}), {"x": x}, within=0.05)


def test_a_subgraph_that_captures_a_graph_output(kit, x, w):
    branch = helper.make_graph([helper.make_node("Neg", ["h"], ["t"])], "b", [], [value("t")])
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], "c"),
        helper.make_node("If", ["cond"], ["y"], "if", then_branch=branch, else_branch=branch),
    ]
    model = kit.model(nodes, {"x": x.shape}, ["h", "y"], {"w": w, "cond": np.array(True)})
    kit.match(model, kit.twins(model, {"c": kit.record(kit.scale_of(w))}), {"x": x}, within=0.05)


def test_the_tensor_that_is_quantized_stays_float_for_a_subgraph(kit, x, w):
    branch = helper.make_graph([helper.make_node("Neg", ["x"], ["t"])], "b", [], [value("t")])
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], "c"),
        helper.make_node("If", ["cond"], ["y"], "if", then_branch=branch, else_branch=branch),
    ]
    model = kit.model(nodes, {"x": x.shape}, ["h", "y"], {"w": w, "cond": np.array(True)})
    kit.match(model, kit.twins(model, {"c": kit.record(kit.scale_of(w))}), {"x": x}, within=0.05)


def inner_conv_model(kit, w, names=("inner", "inner2")):
    branches = [
        helper.make_graph([helper.make_node("Conv", ["x", "w"], ["t"], name)], "b", [], [value("t")]) for name in names
    ]
    nodes = [
        helper.make_node("If", ["cond"], ["y"], "if", then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("Conv", ["x", "w"], ["z"], "outer"),
    ]
    return kit.model(nodes, {"x": (1, 2, 3, 3)}, ["y", "z"], {"w": w, "cond": np.array(True)})


@pytest.mark.parametrize("names", [("inner", "inner2"), ("inner", "inner")], ids=["once", "in both branches"])
def test_a_layer_inside_a_subgraph_is_refused_for_that_reason(kit, w, names):
    with pytest.raises(RecordLayerError, match=r"'inner'.*subgraph"):
        kit.twins(inner_conv_model(kit, w, names), {"inner": kit.record()})


def test_layers_inside_subgraphs_do_not_hinder_the_others(kit, x, w):
    model = inner_conv_model(kit, w)
    twins = kit.twins(model, {"outer": kit.record(kit.scale_of(w))})
    kit.match(model, twins, {"x": x}, within=0.05)


def test_a_name_inside_and_outside_a_subgraph_means_the_outer_layer(kit, x, w):
    model = inner_conv_model(kit, w, ("outer", "outer"))
    twins = kit.twins(model, {"outer": kit.record(kit.scale_of(w))})
    kit.match(model, twins, {"x": x}, within=0.05)


def test_a_chain_of_layers_is_in_topological_order(kit, x, w):
    nodes = [helper.make_node("Conv", [f"h{i}", "w"], [f"h{i + 1}"], f"c{i}") for i in range(4)]
    model = kit.model(nodes, {"h0": x.shape}, ["h4"], {"w": w})
    made = kit.record(kit.scale_of(w), scale_d=3)
    twins = kit.twins(model, {f"c{i}": made for i in range(4)})
    onnx.checker.check_model(twins.fake, full_check=True)
    assert kit.names(twins.deploy) == [f"c{i}{s}" for i in range(4) for s in (".quant", "", ".dequant")]
