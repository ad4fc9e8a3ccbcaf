"""The modified model's weights are floats on the grids of their integers, as the vendor's tool leaves them."""

from __future__ import annotations

import hashlib
import json

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

import twinquant
from twinquant.records import parse_record_file
from twinquant_onnx import amct
from twinquant_onnx.insert.twin import Twin


def normal(*shape, seed=3, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def node(op_type, inputs, outputs, name, **attributes):
    return helper.make_node(op_type, inputs.split(), outputs.split(), name=name, **attributes)


def simple(kit, nodes, constants, shape, *, kind=TensorProto.FLOAT, outputs=("y",)):
    model = kit.make_model(nodes, constants, {"x": (kind, shape)}, outputs)
    for output in model.graph.output:
        output.type.tensor_type.elem_type = kind
    return model, {"x": normal(*shape, seed=9, dtype=helper.tensor_dtype_to_np_dtype(kind))}


def fused(kit):
    return kit.convolutions(), {"x": kit.batches(1)[0]}


def transposed_convolution(kit):
    nodes = [
        node("ConvTranspose", "x w b", "c", "up", group=2, strides=[2, 2]),
        node("AveragePool", "c", "y", "pool", kernel_shape=[2, 2]),
    ]
    return simple(kit, nodes, {"w": normal(4, 3, 2, 2), "b": normal(6)}, [2, 4, 5, 5])


def matrices(kit):
    nodes = [
        node("Transpose", "w1", "t1", "transpose", perm=[1, 0]),
        node("MatMul", "x t1", "p", "through_transpose"),
        node("Add", "p b1", "a", "add"),
        node("Gemm", "a w2", "g", "gemm"),
        node("Gemm", "g w3 b3", "h", "gemm_b", transB=1),
        node("MatMul", "h w4", "y", "product"),
    ]
    constants = {
        "w1": normal(6, 4),
        "b1": normal(6),
        "w2": normal(6, 5),
        "w3": normal(7, 5),
        "b3": normal(7),
        "w4": normal(7, 3),
    }
    return simple(kit, nodes, constants, [3, 4])


def shared_with_float_reader(kit):
    nodes = [
        node("MatMul", "x w", "a", "first"),
        node("MatMul", "a w", "b", "second"),
        node("Add", "b w", "y", "floats"),
    ]
    return simple(kit, nodes, {"w": normal(4, 4)}, [4, 4])


def shared_in_two_layouts(kit):
    nodes = [node("Gemm", "x w", "a", "first", transB=1), node("MatMul", "a w", "y", "second")]
    return simple(kit, nodes, {"w": normal(4, 4)}, [3, 4])


def shared_through_an_identity(kit):
    nodes = [
        node("Conv", "x w", "a", "first"),
        node("ConvTranspose", "a w", "b", "second"),
        node("Identity", "w", "i", "identity"),
        node("Conv", "b i", "y", "third"),
    ]
    return simple(kit, nodes, {"w": normal(4, 4, 3, 3) / 6}, [1, 4, 6, 6])


def constant_node(kit):
    weight = helper.make_node("Constant", [], ["w"], name="weight", value=numpy_helper.from_array(normal(4, 5)))
    return simple(kit, [weight, node("MatMul", "x w", "y", "product")], {}, [3, 4])


def half(kit):
    nodes = [node("Conv", "x w b", "y", "conv")]
    constants = {"w": normal(6, 4, 3, 3, dtype=np.float16), "b": normal(6, dtype=np.float16)}
    return simple(kit, nodes, constants, [2, 4, 5, 5], kind=TensorProto.FLOAT16)


def double(kit):
    nodes = [node("MatMul", "x w", "y", "product")]
    return simple(kit, nodes, {"w": normal(4, 5, dtype=np.float64)}, [3, 4], kind=TensorProto.DOUBLE)


def recurrent(op_type, gates, kit):
    states = ["h0", "c0"] if op_type == "LSTM" else ["h0"]
    attributes = {"hidden_size": 6} | ({"linear_before_reset": 1} if op_type == "GRU" else {})
    outputs = ["y", "hn", "cn"][: len(states) + 1]
    layer = helper.make_node(op_type, ["x", "w", "r", "b", "", *states], outputs, name="rnn", **attributes)
    constants = {"w": normal(1, 6 * gates, 4), "r": normal(1, 6 * gates, 6, seed=4), "b": normal(1, 12 * gates)}
    inputs = {"x": (TensorProto.FLOAT, [3, 2, 4])} | dict.fromkeys(states, (TensorProto.FLOAT, [1, 2, 6]))
    model = kit.make_model([layer], constants, inputs, outputs)
    return model, {name: normal(*shape, seed=index) for index, (name, (_, shape)) in enumerate(inputs.items())}


MODELS = {
    "convolutions with a normalization": fused,
    "transposed convolution, average pool": transposed_convolution,
    "matrices": matrices,
    "a weight that is read as floats, too": shared_with_float_reader,
    "a weight that is read in two layouts": shared_in_two_layouts,
    "a Constant node": constant_node,
    "float16": half,
    "float64": double,
    "LSTM": lambda kit: recurrent("LSTM", 4, kit),
    "GRU": lambda kit: recurrent("GRU", 3, kit),
}


@pytest.fixture(params=MODELS)
def case(request, tmp_path, kit):
    """A folder with a model and its configuration, after `quantize_model` and one batch; and the batch."""
    model, feeds = MODELS[request.param](kit)
    onnx.save(model, tmp_path / "model.onnx")
    prepare(tmp_path, kit)
    run(tmp_path, feeds)
    return tmp_path, feeds


def prepare(folder, kit, change=None):
    amct.create_quant_config(folder / "config.json", folder / "model.onnx")
    kit.change_config(folder / "config.json", kit.use_minmax)
    if change is not None:
        change(folder / "config.json")
    quantize(folder)


def quantize(folder, modified="modified.onnx", record="record.txt", model="model.onnx"):
    amct.quantize_model(folder / "config.json", folder / model, folder / modified, folder / record)


def run(folder, feeds, modified="modified.onnx"):
    session = ort.InferenceSession(str(folder / modified), amct.AMCT_SO)
    return session.run(None, feeds)


def weights_of(path):
    """The weights by layer and input, looked up through Constant, Identity and Transpose nodes; transposed: turned."""
    graph = onnx.load(path).graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for each in graph.node:
        if each.op_type == "Constant":
            values[each.output[0]] = helper.get_attribute_value(each.attribute[0])
            if isinstance(values[each.output[0]], onnx.TensorProto):
                values[each.output[0]] = numpy_helper.to_array(values[each.output[0]])
        if each.op_type in ("Identity", "Transpose") and each.input[0] in values:
            source = values[each.input[0]]
            values[each.output[0]] = source.T if each.op_type == "Transpose" else source
    slots = {"LSTM": (1, 2), "GRU": (1, 2)}
    types = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU")
    return {
        (each.name, slot): (each, values[each.input[slot]])
        for each in graph.node
        if each.op_type in types
        for slot in slots.get(each.op_type, (1,))
    }


def spread(layer, slot, record, weight):
    """The scale of every value of a weight, by the description of the format."""
    scale = record.scale_r if slot == 2 else record.scale_w
    if scale.size == 1:
        return np.broadcast_to(scale, weight.shape)
    if layer.op_type in ("LSTM", "GRU"):
        return np.broadcast_to(np.repeat(scale, weight.shape[1] // scale.size)[None, :, None], weight.shape)
    if layer.op_type == "Conv":
        return np.broadcast_to(scale.reshape(-1, 1, 1, 1), weight.shape)
    groups = scale.size // weight.shape[1]
    return np.repeat(scale.reshape(groups, weight.shape[1]), weight.shape[0] // groups, axis=0)[:, :, None, None]


def test_weights_are_multiples_of_their_scales_next_to_the_float_ones(case):
    folder, feeds = case
    twinquant.calibrate(
        folder / "model.onnx",
        [feeds],
        folder / "direct.txt",
        config=folder / "config.json",
        prepared_model=folder / "float.onnx",
    )
    records = parse_record_file(folder / "record.txt").records
    floats = weights_of(folder / "float.onnx")
    for place, (layer, weight) in weights_of(folder / "modified.onnx").items():
        scale = spread(layer, place[1], records[layer.name], weight)
        wide = floats[place][1].astype(np.float32)
        expected = (np.clip(np.rint(wide / scale), -128, 127) * scale).astype(np.float32).astype(weight.dtype)
        if layer.op_type == "ConvTranspose":
            expected = floats[place][1]  # the vendor's tool leaves these as they are
        np.testing.assert_array_equal(weight, expected, strict=True)
        assert np.array_equal(weight, floats[place][1]) == (layer.op_type == "ConvTranspose")


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_the_twins_are_those_of_the_float_model_with_the_same_record(case):
    folder, feeds = case
    twinquant.calibrate(
        folder / "model.onnx",
        [feeds],
        folder / "direct.txt",
        config=folder / "config.json",
        prepared_model=folder / "float.onnx",
    )
    amct.save_model(folder / "modified.onnx", folder / "record.txt", folder / "modified" / "m")
    amct.save_model(folder / "float.onnx", folder / "record.txt", folder / "float" / "m")
    assert digests(folder / "modified") == digests(folder / "float")


def test_layers_that_share_a_weight_with_others_keep_their_integers(tmp_path, kit):
    model, feeds = shared_through_an_identity(kit)
    onnx.save(model, tmp_path / "model.onnx")
    prepare(tmp_path, kit)
    run(tmp_path, feeds)
    for name in ("modified", "model"):
        amct.save_model(tmp_path / f"{name}.onnx", tmp_path / "record.txt", tmp_path / name / "m")
    for flavor in ("deploy", "fake_quant"):
        found, wanted = (weights_of(tmp_path / name / f"m_{flavor}_model.onnx") for name in ("modified", "model"))
        assert found.keys() == wanted.keys() == {("first", 1), ("second", 1), ("third", 1)}
        for place in found:
            np.testing.assert_array_equal(found[place][1], wanted[place][1], strict=True)


def test_the_scales_of_weights_are_those_of_twinquant_calibrate_to_the_bit(case):
    folder, feeds = case
    direct = twinquant.calibrate(
        folder / "model.onnx",
        [feeds],
        folder / "direct.txt",
        config=folder / "config.json",
        prepared_model=folder / "float.onnx",
    ).records
    for name, record in parse_record_file(folder / "record.txt").records.items():
        np.testing.assert_array_equal(record.scale_w, direct[name].scale_w)
        np.testing.assert_array_equal(record.scale_r, direct[name].scale_r)


def test_quantizing_and_calibrating_again_writes_the_same_files(case):
    folder, feeds = case
    before = digests(folder)
    quantize(folder)
    run(folder, feeds)
    assert digests(folder) == before


def test_a_modified_model_that_is_quantized_keeps_its_integers(case):
    """Somebody has the vendor's modified model, but no longer the float one."""
    folder, feeds = case
    quantize(folder, "second.onnx", "second.txt", "modified.onnx")
    run(folder, feeds, "second.onnx")
    for modified, record, out in (("modified", "record", "one"), ("second", "second", "two")):
        amct.save_model(folder / f"{modified}.onnx", folder / f"{record}.txt", folder / out / "m")
    first, second = (weights_of(folder / out / "m_fake_quant_model.onnx") for out in ("one", "two"))
    for place, (layer, weight) in first.items():
        if layer.op_type not in ("LSTM", "GRU"):  # theirs are integers times scales
            np.testing.assert_array_equal(weight, second[place][1])
        np.testing.assert_allclose(weight, second[place][1], rtol=1e-6)


def test_a_layer_that_the_configuration_leaves_float_keeps_its_weight(tmp_path, kit):
    model, _ = shared_with_float_reader(kit)
    onnx.save(model, tmp_path / "model.onnx")

    def leave_second(path):
        content = json.loads(path.read_text())
        content["second"] = {"quant_enable": False}
        path.write_text(json.dumps(content))

    prepare(tmp_path, kit, leave_second)
    weights = weights_of(tmp_path / "modified.onnx")
    original = normal(4, 4)
    np.testing.assert_array_equal(weights["second", 1][1], original)
    assert not np.array_equal(weights["first", 1][1], original)


def test_weights_of_four_bits_have_sixteen_values(tmp_path, kit):
    def four_bits(path):
        kit.change_config(path, lambda layer: layer["weight_quant_params"].update(num_bits=4))

    onnx.save(matrices(kit)[0], tmp_path / "model.onnx")
    prepare(tmp_path, kit, four_bits)
    ((_, weight),) = [found for (name, _), found in weights_of(tmp_path / "modified.onnx").items() if name == "gemm"]
    step = np.abs(normal(6, 5)).max() / 7
    assert set(np.rint(weight / step).ravel()) <= set(range(-8, 8))
    np.testing.assert_allclose(weight, np.rint(weight / step) * step, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_the_scale_is_not_the_one_of_weights_that_were_rounded_to_few_digits(tmp_path, kit, dtype):
    weight = normal(4, 5).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        node("Cast", "x", "narrow", "cast", to=kind),
        node("MatMul", "narrow w", "p", "product"),
        node("Cast", "p", "y", "back", to=TensorProto.FLOAT),
    ]
    model = kit.make_model(nodes, {}, {"x": (TensorProto.FLOAT, [3, 4])}, ["y"])
    model.graph.initializer.append(numpy_helper.from_array(weight, "w"))
    onnx.save(model, tmp_path / "model.onnx")
    prepare(tmp_path, kit)
    wide = weight.astype(np.float32)
    low, high = float(wide.min()), float(wide.max())
    scale = np.float32(high / 127 if high >= -low else -low / 128)
    rounded = weights_of(tmp_path / "modified.onnx")["product", 1][1]
    assert rounded.dtype == dtype
    np.testing.assert_array_equal(np.rint(rounded.astype(np.float32) / scale), np.rint(wide / scale))
    if dtype is np.float16:  # ONNX Runtime has no MatMul of bfloat16 on a CPU
        run(tmp_path, {"x": normal(3, 4)})
        assert parse_record_file(tmp_path / "record.txt").records["product"].scale_w == scale


def test_weights_are_rounded_block_by_block(tmp_path, kit, monkeypatch):
    """Nothing holds a weight in whole: it is rounded while it is written."""
    stored = []
    monkeypatch.setattr(Twin, "finish", lambda self, finish=Twin.finish: stored.append(self.store) or finish(self))
    model, _ = simple(kit, [node("MatMul", "x w", "y", "product")], {"w": normal(1000, 200)}, [2, 1000])
    onnx.save(model, tmp_path / "model.onnx")
    prepare(tmp_path, kit)
    sizes = [block.size for block in stored[0].entries[-1].content.blocks()]
    assert sum(sizes) == 1000 * 200 * 4
    assert max(sizes) <= 4 << 16


def test_a_weight_with_nan_is_refused_at_once(tmp_path, kit):
    weight = normal(4, 5)
    weight[1, 2] = np.nan
    model, _ = simple(kit, [node("MatMul", "x w", "y", "product")], {"w": weight}, [3, 4])
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(twinquant.TwinQuantError, match="layer 'product': the weight holds NaN or infinity"):
        prepare(tmp_path, kit)
    assert not (tmp_path / "modified.onnx").exists()


def test_calibrating_the_modified_model_itself_finds_the_same_activations(tmp_path, kit):
    onnx.save(kit.convolutions(), tmp_path / "model.onnx")
    prepare(tmp_path, kit)
    batch = kit.batches(1)
    run(tmp_path, {"x": batch[0]})
    itself, of_floats = (
        twinquant.calibrate(
            tmp_path / f"{name}.onnx",
            batch,
            tmp_path / "direct.txt",
            config={"activation_algorithm": "minmax"},
            batch_num=1,
            prepared_model=tmp_path / "prepared.onnx",
        ).records
        for name in ("modified", "model")
    )
    for name, record in parse_record_file(tmp_path / "record.txt").records.items():
        assert (record.scale_d, record.offset_d) == (itself[name].scale_d, itself[name].offset_d)
        assert record.scale_d == pytest.approx(of_floats[name].scale_d, rel=0.02)
    # What the first layer reads does not depend on any weight; what the others read does.
    records = parse_record_file(tmp_path / "record.txt").records
    assert records["conv1"].scale_d == of_floats["conv1"].scale_d
    assert records["fc"].scale_d != of_floats["fc"].scale_d
