"""Everything that quantization has nothing to do with stays as it was."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from twinquant.outputs import Flavor
from twinquant.plan import build_plan
from twinquant.records import LayerRecord, RecordSet
from twinquant_onnx.graph import OnnxGraph, TensorStore
from twinquant_onnx.insert import build_twin
from twinquant_onnx.layers import analyse
from twinquant_onnx.tensors import ArrayBytes

W = np.linspace(-1, 1, 4, dtype=np.float32).reshape(2, 2, 1, 1)


@pytest.fixture
def rich(kit):
    """A model with something of everything."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], "c", doc_string="first"),
        helper.make_node("Double", ["h"], ["d"], "f", domain="local"),
        helper.make_node("Mystery", ["d"], ["m"], "custom", domain="my.ops", level=3),
        helper.make_node("Neg", ["x"], ["dead"], "dead"),
        helper.make_node("Relu", ["m"], ["y"], "r"),
    ]
    model = kit.model(
        nodes,
        {"x": ("n", 2, 3, 3)},
        ["y", "h"],
        {"w": W, "unused": W},
        imports=[("my.ops", 1), ("local", 1)],
        ir_version=8,
    )
    model.functions.append(
        helper.make_function(
            "local",
            "Double",
            ["a"],
            ["b"],
            [helper.make_node("Add", ["a", "a"], ["b"])],
            [helper.make_opsetid("", 13)],
        )
    )
    model.producer_name, model.producer_version, model.domain, model.model_version = "tool", "1.2", "org", 7
    model.doc_string, model.graph.doc_string = "a model", "a graph"
    model.metadata_props.add(key="k", value="v")
    sparse = onnx.SparseTensorProto(dims=[4])
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([5]), "sparse"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([2], np.int64), "sparse_indices"))
    model.graph.sparse_initializer.append(sparse)
    model.graph.quantization_annotation.add(tensor_name="x")
    return model


def test_the_frame_of_the_model_is_kept_in_both_twins(kit, rich):
    twins = kit.twins(rich, {"c": kit.record(0.01)})
    for twin in (twins.fake, twins.deploy):
        for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
            assert getattr(twin, name) == getattr(rich, name)
        for name in ("opset_import", "metadata_props", "functions"):
            assert list(getattr(twin, name)) == list(getattr(rich, name))
        for name in ("input", "output", "sparse_initializer", "quantization_annotation"):
            assert list(getattr(twin.graph, name)) == list(getattr(rich.graph, name))
        assert (twin.graph.name, twin.graph.doc_string) == ("g", "a graph")
        np.testing.assert_array_equal(kit.array(twin, "unused"), W)
        for name in ("f", "custom", "dead", "r"):
            before = kit.node(rich, name)
            after = kit.node(twin, name)
            assert (after.domain, list(after.attribute), list(after.output)) == (
                before.domain,
                list(before.attribute),
                list(before.output),
            )
        assert kit.node(twin, "c").doc_string == "first"


def test_new_nodes_are_of_the_main_domain(kit, rich):
    twins = kit.twins(rich, {"c": kit.record(0.01)})
    old = set(kit.names(rich))
    for twin in (twins.fake, twins.deploy):
        assert {node.domain for node in twin.graph.node if node.name not in old} == {""}


def test_the_same_input_gives_the_same_twins(kit, rich):
    first, second = (kit.twins(rich, {"c": kit.record(0.01)}) for _ in range(2))
    assert first.fake.SerializeToString() == second.fake.SerializeToString()
    assert first.deploy.SerializeToString() == second.deploy.SerializeToString()


def test_an_initializer_that_is_a_graph_input_too_is_removed_from_the_inputs(kit, rng):
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"], "c"), helper.make_node("Mul", ["h", "s"], ["y"], "m")]
    model = kit.model(
        nodes,
        {"w": W.shape, "x": (1, 2, 3, 3), "s": (1,)},
        ["y"],
        {"w": W, "s": np.float32([2])},
        ir_version=3,
        opset=8,
    )
    twins = kit.twins(model, {"c": kit.record(1 / 127)})
    for twin in (twins.fake, twins.deploy):
        assert [value.name for value in twin.graph.input] == ["x"]
        assert twin.ir_version == 3
    x = rng.normal(size=(1, 2, 3, 3)).astype(np.float32)
    kit.match(model, twins, {"x": x}, within=0.05)


def test_an_old_model_keeps_the_inputs_without_which_it_does_not_load(kit, rng):
    """ONNX Runtime wants a format 3 model to name each initializer as an input or as a node's input."""
    branch = helper.make_graph(
        [helper.make_node("Add", ["h", "k"], ["t"])], "b", [], [helper.make_tensor_value_info("t", 1, None)]
    )
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], "c"),
        helper.make_node("If", ["cond"], ["y"], "if", then_branch=branch, else_branch=branch),
    ]
    constants = {"w": W, "k": np.float32([1]), "unused": np.float32([1]), "cond": np.array(True)}
    inputs = {"x": (1, 2, 3, 3), "w": W.shape, "k": (1,), "unused": (1,), "cond": kit.Typed(TensorProto.BOOL, ())}
    model = kit.model(nodes, inputs, ["y"], constants, ir_version=3, opset=9)
    twins = kit.twins(model, {"c": kit.record(1 / 127)})
    for twin in (twins.fake, twins.deploy):
        assert [value.name for value in twin.graph.input] == ["x", "k", "unused"]
    kit.match(model, twins, {"x": rng.normal(size=(1, 2, 3, 3)).astype(np.float32)}, within=0.05)
    for version, left in ((4, ["x"]), (8, ["x"])):
        model.ir_version = version
        twins = kit.twins(model, {"c": kit.record(1 / 127)})
        assert [value.name for value in twins.fake.graph.input] == left


def infos(model):
    return {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}


def test_declarations_of_tensors_that_changed_their_type_are_dropped(kit):
    nodes = [
        helper.make_node("Relu", ["x"], ["a"], "r"),
        helper.make_node("Identity", ["w"], ["same"], "i"),
        helper.make_node("Conv", ["a", "same"], ["h"], "c"),
        helper.make_node("Relu", ["h"], ["b"], "s"),
        helper.make_node("MatMul", ["b", "v"], ["p"], "m"),
        helper.make_node("Add", ["p", "bias"], ["q"], "add"),
        helper.make_node("Relu", ["q"], ["y"], "t"),
    ]
    constants = {"w": W, "v": np.ones((3, 4), np.float32), "bias": np.ones(4, np.float32)}
    model = onnx.shape_inference.infer_shapes(kit.model(nodes, {"x": (1, 2, 3, 3)}, ["y"], constants))
    for name in ("w", "v", "bias"):
        model.graph.value_info.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    assert {"a", "same", "h", "b", "p", "q"} <= set(infos(model))
    twins = kit.twins(model, {"c": kit.record(0.1), "m": kit.record(0.1)})
    assert infos(twins.deploy) == {"a": TensorProto.FLOAT, "b": TensorProto.FLOAT}
    onnx.checker.check_model(twins.fake, full_check=True)
    assert set(infos(twins.fake).values()) == {TensorProto.FLOAT}


def test_a_float16_fake_twin_declares_no_type_wrongly(kit):
    nodes = [
        helper.make_node("Pad", ["x", "pads"], ["p"], "pool_pad"),
        helper.make_node("AveragePool", ["p"], ["q"], "pool", kernel_shape=[2, 2]),
        helper.make_node("Conv", ["q", "w"], ["h"], "c"),
        helper.make_node("Relu", ["h"], ["y"], "r"),
    ]
    constants = {"w": W.astype(np.float16), "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)}
    kind = TensorProto.FLOAT16
    model = kit.model(nodes, {"x": kit.Typed(kind, (1, 2, 3, 3))}, {"y": kind}, constants)
    model = onnx.shape_inference.infer_shapes(model)
    assert {"p", "q", "h"} <= set(infos(model))
    twins = kit.twins(model, {"pool": kit.record(1.0), "c": kit.record(0.1)})
    for twin in (twins.fake, twins.deploy):
        assert not {"p", "q", "h"} & set(infos(twin))
    onnx.checker.check_model(twins.fake, full_check=True)


def test_declarations_are_kept_where_only_a_copy_is_quantized(kit):
    nodes = [helper.make_node("Conv", ["x", "w"], ["h"], "c"), helper.make_node("Neg", ["w"], ["n"], "n")]
    model = kit.model(nodes, {"x": (1, 2, 3, 3)}, ["h", "n"], {"w": W})
    model.graph.value_info.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, W.shape))
    assert infos(kit.twins(model, {"c": kit.record(0.1)}).deploy) == {"w": TensorProto.FLOAT}


def test_a_sparse_weight_is_refused(kit):
    from twinquant.errors import RecordLayerError

    model = kit.model([helper.make_node("MatMul", ["x", "w"], ["y"], "m")], {"x": (2, 4)}, ["y"])
    sparse = onnx.SparseTensorProto(dims=[4, 3])
    sparse.values.CopyFrom(numpy_helper.from_array(np.float32([5]), "w"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([2], np.int64), "i"))
    model.graph.sparse_initializer.append(sparse)
    with pytest.raises(RecordLayerError, match=r"'m'.*not constant"):
        kit.twins(model, {"m": kit.record()})


def stored(model):
    """Give the data of initializers and Constant nodes over to the store, as loading does with external ones."""
    store = TensorStore()
    values = [attribute.t for node in model.graph.node for attribute in node.attribute if attribute.HasField("t")]
    for tensor in [*model.graph.initializer, *values]:
        store.attach(tensor, ArrayBytes(numpy_helper.to_array(tensor)), external=True)
    return OnnxGraph(model, store, ())


def test_tensors_in_the_store_are_treated_like_those_in_the_message(kit, rng):
    w, b = rng.normal(size=(2, 2, 3, 3)).astype(np.float32), rng.normal(size=2).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["h"], "c"),
        helper.make_node("Constant", [], ["zero"], "k", value=numpy_helper.from_array(np.float32([0]).reshape(()))),
        helper.make_node("Pad", ["h", "pads", "zero"], ["p"], "pool_pad"),
        helper.make_node("AveragePool", ["p"], ["y"], "pool", kernel_shape=[2, 2]),
    ]
    constants = {"w": w, "b": b, "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64)}
    model = kit.model(nodes, {"x": (1, 2, 5, 5)}, ["y"], constants)
    records = {"c": kit.record(kit.scale_of(w)), "pool": kit.record(1.0)}
    expected = kit.twins(model, records)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    loaded = analyse(stored(copy))
    plan = build_plan(
        RecordSet({key: LayerRecord(key, **made) for key, made in records.items()}), loaded.layers, "onnx"
    )
    for flavor, twin in ((Flavor.FAKE_QUANT, expected.fake), (Flavor.DEPLOY, expected.deploy)):
        graph = build_twin(loaded, plan, flavor)
        for tensor in graph.model.graph.initializer:
            entry = graph.store.get(tensor)
            if entry is not None:
                data = b"".join(bytes(block) for block in entry.content.blocks())
                assert data == numpy_helper.to_array(kit.tensor(twin, tensor.name)).tobytes()
                assert entry.external == (tensor.name in constants)
        assert [node.name for node in graph.model.graph.node] == kit.names(twin, constants=True)
