"""A deploy twin that was damaged in any way is caught: random damage of every kind, in models of every kind."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import AttributeProto, helper, numpy_helper

import twinquant
from twinquant.errors import ModelFileError, VerificationError
from twinquant_onnx.verify import verify_twins

Model = onnx.ModelProto
Random = np.random.Generator

OTHER_TYPE = {onnx.TensorProto.INT8: onnx.TensorProto.UINT8, onnx.TensorProto.INT32: onnx.TensorProto.FLOAT}
OTHER_OPERATOR = {"Relu": "Abs", "Mul": "Add", "Add": "Mul", "Neg": "Relu", "AveragePool": "MaxPool"}


def choose(random: Random, items):
    items = list(items)
    return items[int(random.integers(len(items)))] if items else None


def change_one_value(model: Model, random: Random) -> None:
    """Flip one bit of one element of one tensor."""
    tensor = choose(random, model.graph.initializer)
    if tensor is None:
        return
    raw = bytearray(tensor.raw_data)
    raw[int(random.integers(len(raw)))] ^= 1 << int(random.integers(8))
    tensor.raw_data = bytes(raw)


def change_the_element_type(model: Model, random: Random) -> None:
    tensor = choose(random, (t for t in model.graph.initializer if t.data_type in OTHER_TYPE))
    if tensor is not None:
        tensor.data_type = OTHER_TYPE[tensor.data_type]


def change_the_dims(model: Model, random: Random) -> None:
    tensor = choose(random, (t for t in model.graph.initializer if t.dims))
    if tensor is not None:
        tensor.dims.append(1)


def exchange_two_tensors(model: Model, random: Random) -> None:
    one, other = choose(random, model.graph.initializer), choose(random, model.graph.initializer)
    if one is not None and (one.data_type, one.dims, one.raw_data) != (other.data_type, other.dims, other.raw_data):
        one.name, other.name = other.name, one.name


def change_an_attribute(model: Model, random: Random) -> None:
    attribute = choose(random, (a for node in model.graph.node for a in node.attribute))
    if attribute is None:
        return
    if attribute.type == AttributeProto.INT:
        attribute.i += 1
    elif attribute.type == AttributeProto.FLOAT:
        attribute.f = float(np.nextafter(np.float32(attribute.f), np.float32(np.inf)))
    elif attribute.type == AttributeProto.INTS:
        place = int(random.integers(len(attribute.ints)))
        attribute.ints[place] += 1
    elif attribute.type == AttributeProto.STRING:
        attribute.s = b"INT16" if attribute.s != b"INT16" else b"INT8"
    elif attribute.type == AttributeProto.TENSOR:
        values = numpy_helper.to_array(attribute.t).copy()
        values.reshape(-1)[int(random.integers(values.size))] += 1
        attribute.t.CopyFrom(numpy_helper.from_array(values, attribute.t.name))
    elif attribute.type == AttributeProto.GRAPH:
        attribute.g.node[0].op_type = "Abs"


def drop_an_attribute(model: Model, random: Random) -> None:
    node = choose(random, (n for n in model.graph.node if n.attribute))
    if node is not None:
        del node.attribute[int(random.integers(len(node.attribute)))]


def add_an_attribute(model: Model, random: Random) -> None:
    choose(random, model.graph.node).attribute.append(helper.make_attribute("extra", 1))


def read_another_tensor(model: Model, random: Random) -> None:
    index = int(random.integers(len(model.graph.node)))
    node = model.graph.node[index]
    if node.input:
        slot = int(random.integers(len(node.input)))
        made = [value.name for value in model.graph.input] + [t.name for t in model.graph.initializer]
        made += [output for earlier in list(model.graph.node)[:index] for output in earlier.output]
        node.input[slot] = choose(random, [tensor for tensor in made if tensor != node.input[slot]])


def exchange_two_inputs(model: Model, random: Random) -> None:
    node = choose(random, (n for n in model.graph.node if len(n.input) > 1))
    if node is not None:
        node.input[0], node.input[1] = node.input[1], node.input[0]


def drop_an_input(model: Model, random: Random) -> None:
    node = choose(random, (n for n in model.graph.node if n.input and n.input[-1]))
    node.input.pop()


def remove_a_node(model: Model, random: Random) -> None:
    node = choose(random, (n for n in model.graph.node if n.input))
    around = {node.output[0]: node.input[0]}
    model.graph.node.remove(node)
    for other in model.graph.node:
        for slot, tensor in enumerate(other.input):
            other.input[slot] = around.get(tensor, tensor)


def insert_a_node(model: Model, random: Random) -> None:
    index = int(random.integers(len(model.graph.node)))
    node = model.graph.node[index]
    if node.input:
        added = helper.make_node("Identity", [node.input[0]], ["added_output"], name="added")
        node.input[0] = "added_output"
        model.graph.node.insert(index, added)


def change_the_operator(model: Model, random: Random) -> None:
    node = choose(random, model.graph.node)
    node.op_type = OTHER_OPERATOR.get(node.op_type, "Identity")


def rename_a_node(model: Model, random: Random) -> None:
    choose(random, model.graph.node).name += "_renamed"


def leave_a_tensor_out(model: Model, random: Random) -> None:
    if model.graph.initializer:
        del model.graph.initializer[int(random.integers(len(model.graph.initializer)))]


def declare_an_output_differently(model: Model, random: Random) -> None:
    choose(random, model.graph.output).type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


DAMAGES = [
    *[change_one_value] * 4,
    change_the_element_type,
    change_the_dims,
    exchange_two_tensors,
    *[change_an_attribute] * 4,
    drop_an_attribute,
    add_an_attribute,
    *[read_another_tensor] * 3,
    exchange_two_inputs,
    drop_an_input,
    remove_a_node,
    insert_a_node,
    change_the_operator,
    rename_a_node,
    leave_a_tensor_out,
    declare_an_output_differently,
]


def is_caught(fake, deploy) -> bool:
    try:
        return not verify_twins(fake, deploy).agree
    except (VerificationError, ModelFileError):
        return True


def test_random_damage_is_always_caught(kind, twins):
    fake, deploy = twins.save(kind)
    original = onnx.load(deploy)
    random = np.random.default_rng(20240229)
    missed, damaged_models = [], 0
    for damage in DAMAGES:
        model = Model()
        model.CopyFrom(original)
        damage(model, random)
        if model != original:
            damaged_models += 1
            if not is_caught(fake, twins.write(model)):
                missed.append(damage.__name__)
    assert damaged_models >= 15
    assert not missed


def test_one_hundred_random_damages_of_a_trained_network_are_all_caught(twins, tmp_path):
    shipped = Path(find_spec("twinquant_onnx").origin).parent / "demo"
    output = twinquant.save_model(shipped / "digits.onnx", shipped / "digits_record.txt", tmp_path / "digits")
    original = onnx.load(output.deploy.model)
    assert verify_twins(output.fake_quant.model, output.deploy.model).agree
    random = np.random.default_rng(20240301)
    missed, damaged_models = [], 0
    while damaged_models < 100:
        damage = choose(random, DAMAGES)
        model = Model()
        model.CopyFrom(original)
        damage(model, random)
        if model != original:
            damaged_models += 1
            if not is_caught(output.fake_quant.model, twins.write(model)):
                missed.append(damage.__name__)
    assert not missed


def test_every_single_bit_of_a_dequantization_parameter_counts(twins):
    fake, deploy = twins.save("old_operators")
    for bit in range(64):
        model = onnx.load(deploy)
        (parameter,) = (t for t in model.graph.initializer if t.name == "conv.dequant.param")
        values = numpy_helper.to_array(parameter) ^ np.uint64(1 << bit)
        parameter.CopyFrom(numpy_helper.from_array(values, parameter.name))
        report = verify_twins(fake, twins.write(model))
        assert not report.layers[0].agree, f"bit {bit}"


def test_a_weight_that_no_input_excites_is_compared(twins, builder):
    b = builder(0)
    b.constants["nothing"] = np.zeros((1, 4), np.float32)
    b.add("Mul", "x nothing", "z", "silence")
    b.add("MatMul", f"z {b.weight('w', 4, 3)}", "y", "deaf")
    b.quantize("deaf", 0.004)
    fake, deploy = twins.save_model(b.model({"x": [2, 4]}, ["y"]), "".join(b.records))
    model = onnx.load(deploy)
    (weight,) = (t for t in model.graph.initializer if t.name == "w")
    values = numpy_helper.to_array(weight).copy()
    values[2, 1] += 1
    weight.CopyFrom(numpy_helper.from_array(values, "w"))
    (layer,) = verify_twins(fake, twins.write(model)).layers
    assert not layer.agree
    assert "weight 'w': 1 of 12 integers differ; at [2, 1]" in layer.problems[0]
    assert layer.max_difference == 0.0


def test_damage_is_blamed_on_its_layer_and_on_no_other(twins):
    fake, deploy = twins.save("convolutions")
    model = onnx.load(deploy)
    (node,) = (n for n in model.graph.node if n.name == "depthwise.quant")
    next(a for a in node.attribute if a.name == "offset").f += 1
    report = verify_twins(fake, twins.write(model))
    assert [layer.name for layer in report.layers if not layer.agree] == ["depthwise"]
    assert not report.problems


def test_a_damaged_layer_spreads_in_free_running_only(twins):
    fake, deploy = twins.save("convolutions")
    model = onnx.load(deploy)
    (bias,) = (t for t in model.graph.initializer if t.name == "b1")
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.int32(5000), "b1"))
    first, second, third = verify_twins(fake, twins.write(model)).layers
    assert first.max_difference > 0
    assert second.max_difference == third.max_difference == 0
    assert second.free_running > 0


@pytest.mark.parametrize("name", ["pads", "strides", "group", "auto_pad"])
def test_an_attribute_of_a_layer_that_differs_is_named(name, twins):
    fake, deploy = twins.save("convolutions")
    model = onnx.load(deploy)
    node = next(n for n in model.graph.node for a in n.attribute if a.name == name)
    attribute = next(a for a in node.attribute if a.name == name)
    if attribute.ints:
        attribute.ints[0] += 1
    else:
        attribute.i, attribute.s = attribute.i * 2, attribute.s and b"SAME_UPPER"
    layers = {layer.name: layer for layer in verify_twins(fake, twins.write(model)).layers}
    assert any(repr(name) in problem for problem in layers[node.name].problems)


def test_a_float_constant_that_differs_is_named(twins):
    fake, deploy = twins.save("few_bits")
    model = onnx.load(fake)
    constant = next(n for n in model.graph.node if n.name.endswith("packed.fakedequant.dqscale"))
    values = numpy_helper.to_array(constant.attribute[0].t).copy()
    values.reshape(-1)[0] *= 2
    constant.attribute[0].t.CopyFrom(numpy_helper.from_array(values))
    report = verify_twins(twins.write(model), deploy)
    assert any("dequantization scales differ" in problem for problem in report.layers[0].problems)


def test_a_tensor_that_only_one_twin_has_is_a_disagreement(twins):
    fake, deploy = twins.save("old_operators")
    model = onnx.load(deploy)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(3, np.float32), "leftover"))
    assert verify_twins(fake, twins.write(model)).problems == ("only the deploy twin has tensor 'leftover'",)


def test_a_node_that_only_the_fake_quant_twin_has_is_a_disagreement(twins):
    fake, deploy = twins.save("old_operators")
    model = onnx.load(fake)
    model.graph.node.append(helper.make_node("Identity", ["x"], ["nowhere"], name="leftover"))
    assert verify_twins(twins.write(model), deploy).problems == (
        "only the fake-quant twin has node 'leftover' (Identity)",
    )


def test_a_subgraph_that_reads_past_the_dequantization_is_caught(twins):
    fake, deploy = twins.save("branches")
    model = onnx.load(deploy)
    (node,) = (n for n in model.graph.node if n.op_type == "If")
    (branch,) = (a.g for a in node.attribute if a.name == "then_branch")
    branch.node[0].input[0] = "x"
    assert any("wired differently" in problem for problem in verify_twins(fake, twins.write(model)).problems)


def test_the_missing_cast_of_a_bias_is_caught(twins):
    fake, deploy = twins.save("few_bits")
    model = onnx.load(deploy)
    (cast,) = (n for n in model.graph.node if n.name == "four.bias_quant")
    (conv,) = (n for n in model.graph.node if n.name == "four")
    conv.input[2] = cast.input[0]
    model.graph.node.remove(cast)
    layers = {layer.name: layer for layer in verify_twins(fake, twins.write(model)).layers}
    assert "the Cast of the bias to float is missing" in layers["four"].problems[0]
