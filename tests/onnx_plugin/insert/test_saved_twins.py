"""The same twins through the front door: files and external data make no difference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

import twinquant
from twinquant.errors import ModelContentError, RecordLayerError
from twinquant.records import LayerRecord, RecordSet


@pytest.fixture
def network(kit, rng):
    """A convolution, a padded pool with a constant pad value, MatMul + Add through a Transpose, Gemm with transB."""
    w, b = rng.normal(size=(3, 2, 3, 3)).astype(np.float32), rng.normal(size=3).astype(np.float32)
    v, g = rng.normal(size=(4, 27)).astype(np.float32), rng.normal(size=(70, 4)).astype(np.float32)
    zero = numpy_helper.from_array(np.zeros((), np.float32))
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["c"], "conv"),
        helper.make_node("Constant", [], ["zero"], "zero", value=zero),
        helper.make_node("Pad", ["c", "pads", "zero"], ["p0"], "pool_pad"),
        helper.make_node("AveragePool", ["p0"], ["p"], "pool", kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Reshape", ["p", "shape"], ["f"], "flat"),
        helper.make_node("Transpose", ["v"], ["vt"], "t", perm=[1, 0]),
        helper.make_node("MatMul", ["f", "vt"], ["m"], "mm"),
        helper.make_node("Add", ["m", "a"], ["s"], "add"),
        helper.make_node("Gemm", ["s", "g"], ["y"], "fc", transB=1),
    ]
    constants = {
        "w": w,
        "b": b,
        "v": v,
        "g": g,
        "a": np.ones(4, np.float32),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64),
        "shape": np.array([1, 27], np.int64),
    }
    model = kit.model(nodes, {"x": (1, 2, 6, 6)}, ["y"], constants)
    records = {
        "conv": kit.record(kit.scale_of(w, axes=(1, 2, 3)), scale_d=0.03),
        "pool": kit.record(1.0, scale_d=0.15),
        "mm": kit.record(kit.scale_of(v), scale_d=0.1),
        "fc": kit.record(kit.scale_of(g), scale_d=0.4),
    }
    return model, records


def record_set(records):
    return RecordSet({key: LayerRecord(key, **fields) for key, fields in records.items()})


def load(path: Path) -> onnx.ModelProto:
    return onnx.load(path)


def normalized(model: onnx.ModelProto) -> bytes:
    """Serialize a model with all tensors as raw data."""
    held = [node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"]
    for tensor in [*model.graph.initializer, *held]:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor), tensor.name))
    return model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("source", ["file", "message", "one external file", "external files of all tensors"])
def test_the_saved_twins_are_the_ones_that_were_built(kit, network, rng, tmp_path, source):
    model, records = network
    twins = kit.twins(model, records)
    graph = model
    if source != "message":
        graph = tmp_path / "in" / "model.onnx"
        graph.parent.mkdir()
        external = source != "file"
        onnx.save_model(
            onnx.ModelProto.FromString(model.SerializeToString()),
            graph,
            save_as_external_data=external,
            all_tensors_to_one_file=source == "one external file",
            size_threshold=0,
            convert_attribute=True,
        )
    out = twinquant.save_model(graph, record_set(records), tmp_path / "out" / "m")
    fake, deploy = load(out.fake_quant.model), load(out.deploy.model)
    assert normalized(fake) == normalized(twins.fake)
    assert normalized(deploy) == normalized(twins.deploy)
    kit.match(model, twins, {"x": rng.normal(size=(1, 2, 6, 6)).astype(np.float32)}, within=0.2)
    onnx.checker.check_model(fake, full_check=True)


@pytest.mark.parametrize("as_node", [False, True], ids=["initializer", "Constant"])
def test_types_are_known_behind_a_reshape_to_an_external_shape(kit, rng, tmp_path, as_node):
    """Nothing but inference tells the type of a pool's input."""
    half = onnx.TensorProto.FLOAT16
    shape = np.array([1, 2, 3, 3], np.int64)
    maker = [helper.make_node("Constant", [], ["shape"], "k", value=numpy_helper.from_array(shape))] if as_node else []
    nodes = [
        *maker,
        helper.make_node("Reshape", ["x", "shape"], ["h"], "r"),
        helper.make_node("AveragePool", ["h"], ["p"], "pool", kernel_shape=[2, 2]),
        helper.make_node("Cast", ["p"], ["y"], "c", to=onnx.TensorProto.FLOAT),
    ]
    model = kit.model(nodes, {"x": kit.Typed(half, (2, 9))}, ["y"], {} if as_node else {"shape": shape})
    onnx.save_model(
        onnx.ModelProto.FromString(model.SerializeToString()),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        size_threshold=0,
        convert_attribute=True,
    )
    records = record_set({"pool": kit.record(1.0)})
    out = twinquant.save_model(tmp_path / "model.onnx", records, tmp_path / "out" / "m")
    assert kit.attributes(kit.node(load(out.deploy.model), "pool.dequant")) == {"dtype": 1}
    x = rng.normal(size=(2, 9)).astype(np.float16)
    got, wanted = (kit.run(load(path), {"x": x})["y"] for path in (out.fake_quant.model, tmp_path / "model.onnx"))
    np.testing.assert_allclose(got, wanted, atol=0.05)


@pytest.mark.parametrize("kind", ["weight", "bias", "layer"])
def test_a_refusal_leaves_nothing_behind(kit, network, tmp_path, kind):
    model, records = network
    expected = ModelContentError
    if kind == "layer":
        records = {**records, "flat": kit.record()}
        expected = RecordLayerError
    else:
        tensor = kit.tensor(model, {"weight": "g", "bias": "a"}[kind])
        broken = np.full(tensor.dims, np.nan, np.float32)
        tensor.CopyFrom(numpy_helper.from_array(broken, tensor.name))
    with pytest.raises(expected):
        twinquant.save_model(model, record_set(records), tmp_path / "out" / "m")
    folder = tmp_path / "out"
    assert not folder.exists() or not [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def test_a_record_file_and_records_in_memory_give_the_same_bytes(kit, tmp_path):
    w = np.linspace(-1, 1, 8, dtype=np.float32).reshape(4, 2, 1, 1)
    model = kit.model([helper.make_node("Conv", ["x", "w"], ["y"], "c")], {"x": (1, 2, 3, 3)}, ["y"], {"w": w})
    text = "".join(f"scale_w: {scale} offset_w: 0 " for scale in (0.01, 0.02, 0.03, 0.04))
    file = tmp_path / "record.txt"
    file.write_text(f'record {{ key: "c" value {{ scale_d: 0.05 offset_d: -3 {text}wts_type: "INT7" }} }}\n')
    records = record_set({"c": kit.record([0.01, 0.02, 0.03, 0.04], scale_d=0.05, offset_d=-3, wts_type="INT7")})
    saved = [twinquant.save_model(model, source, tmp_path / str(i) / "m") for i, source in enumerate((file, records))]
    for flavor in ("fake_quant", "deploy"):
        first, second = (getattr(output, flavor).model.read_bytes() for output in saved)
        assert first == second
