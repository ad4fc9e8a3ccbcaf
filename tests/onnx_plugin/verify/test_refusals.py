"""What cannot be compared is refused with the reason and the way out."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from twinquant.errors import ModelFileError, VerificationError
from twinquant_onnx.verify import verify_twins


def test_swapped_models_are_recognized(twins):
    fake, deploy = twins.save("old_operators")
    with pytest.raises(VerificationError, match=r"swapped.*give the fake-quant model first"):
        verify_twins(deploy, fake)


def test_the_same_fake_quant_model_twice_is_no_pair(twins):
    fake, _ = twins.save("old_operators")
    with pytest.raises(VerificationError, match="is a fake-quant model; a deploy model is expected"):
        verify_twins(fake, fake)


def test_the_same_deploy_model_twice_is_no_pair(twins):
    _, deploy = twins.save("old_operators")
    with pytest.raises(VerificationError, match="is a deploy model; a fake-quant model is expected"):
        verify_twins(deploy, deploy)


def test_a_float_model_is_not_a_deploy_model(twins):
    fake, _ = twins.save("old_operators")
    node = helper.make_node("Relu", ["x"], ["y"], name="relu")
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1]) for name in "xy")
    plain = twins.write(helper.make_model(helper.make_graph([node], "g", [x], [y])))
    with pytest.raises(VerificationError, match="without any quantized layer"):
        verify_twins(fake, plain)


def test_twins_of_two_different_models_have_nothing_in_common(twins):
    fake, _ = twins.save("matrix_products")
    _, deploy = twins.save("old_operators")
    with pytest.raises(VerificationError, match="no quantized layer in common"):
        verify_twins(fake, deploy)


def test_a_missing_file_is_named(twins, tmp_path):
    fake, _ = twins.save("old_operators")
    with pytest.raises(ModelFileError, match=r"nowhere\.onnx"):
        verify_twins(fake, tmp_path / "nowhere.onnx")


def test_data_for_an_input_that_does_not_exist_name_both(twins):
    feeds = {"image": np.zeros((1, 2, 6), np.float32)}
    with pytest.raises(VerificationError, match=r"'image'.*\['x'\]"):
        verify_twins(*twins.save("old_operators"), feeds)


def test_data_that_leave_an_input_out_name_it(twins):
    feeds = {"x": np.zeros((3, 2, 6), np.float32), "h": np.zeros((1, 2, 4), np.float32)}
    with pytest.raises(VerificationError, match="no array for input 'c'"):
        verify_twins(*twins.save("lstm"), feeds)


@pytest.mark.parametrize("shape", [(1, 2, 7), (1, 2), (1, 2, 6, 1)])
def test_data_of_another_shape_name_both_shapes(shape, twins):
    with pytest.raises(VerificationError, match=r"shape \[1, 2.*the model expects \[1, 2, 6\]"):
        verify_twins(*twins.save("old_operators"), {"x": np.zeros(shape, np.float32)})


def test_data_of_another_element_type_name_both_types(twins):
    with pytest.raises(VerificationError, match="the data are float64, the model expects float32"):
        verify_twins(*twins.save("old_operators"), {"x": np.zeros((1, 2, 6))})


def test_an_input_without_a_shape_asks_for_data(twins, builder):
    b = builder(0)
    b.add("MatMul", f"x {b.weight('w', 4, 3)}", "y", "mm")
    b.quantize("mm", 0.004)
    model = b.model({"x": [2, 4]}, ["y"])
    model.graph.input[0].type.tensor_type.ClearField("shape")
    pair = twins.save_model(model, "".join(b.records))
    with pytest.raises(VerificationError, match=r"input 'x' has no declared shape.*--data"):
        verify_twins(*pair)
    assert verify_twins(*pair, {"x": np.ones((2, 4), np.float32)}).agree


def test_open_lengths_are_guessed_until_the_model_runs(twins, builder):
    b = builder(0)
    b.add("Conv", f"x {b.weight('w', 3, 2, 5, 5)}", "c", "conv")
    b.quantize("conv", 0.004)
    b.constants["shape"] = np.array([1, 3, 60, 60])
    b.add("Reshape", "c shape", "y", "only_64_fits")
    pair = twins.save_model(b.model({"x": ["n", 2, "height", "width"]}, ["y"]), "".join(b.records))
    assert verify_twins(*pair).agree


def test_a_model_that_runs_with_no_guessed_length_asks_for_data(twins, builder):
    b = builder(0)
    b.add("MatMul", f"x {b.weight('w', 4, 4)}", "m", "mm")
    b.quantize("mm", 0.004)
    b.constants["shape"] = np.array([7, 11])
    b.add("Reshape", "m shape", "y", "odd")
    pair = twins.save_model(b.model({"x": ["n", 4]}, ["y"]), "".join(b.records))
    with pytest.raises(VerificationError, match=r"give input with --data.*'mm"):
        verify_twins(*pair)


def test_a_fake_quant_twin_that_does_not_run_says_where(twins, builder):
    b = builder(0)
    b.add("MatMul", f"x {b.weight('w', 4, 4)}", "m", "mm")
    b.quantize("mm", 0.004)
    b.constants["shape"] = np.array([7, 11])
    b.add("Reshape", "m shape", "y", "odd")
    pair = twins.save_model(b.model({"x": [2, 4]}, ["y"]), "".join(b.records))
    with pytest.raises(VerificationError, match="ONNX Runtime cannot run"):
        verify_twins(*pair)


def test_a_deploy_twin_that_does_not_run_is_a_disagreement_not_an_error(twins):
    fake, deploy = twins.save("convolutions")
    model = onnx.load(deploy)
    (weight,) = (t for t in model.graph.initializer if t.name == "w2")
    weight.dims[:] = [3, 2, 3, 3]
    report = verify_twins(fake, twins.write(model))
    assert any("does not run" in problem for problem in report.problems)
    layers = {layer.name: layer for layer in report.layers}
    assert "dims [3, 2, 3, 3] in the deploy twin and [6, 1, 3, 3]" in layers["depthwise"].problems[0]
    assert layers["up"].max_difference == 0.0
    assert layers["up"].free_running is None


def test_what_is_built_differently_is_not_run_but_the_other_layers_are(twins):
    fake, deploy = twins.save("convolutions")
    model = onnx.load(deploy)
    (node,) = (n for n in model.graph.node if n.name == "depthwise")
    next(a for a in node.attribute if a.name == "group").i = 4
    layers = {layer.name: layer for layer in verify_twins(fake, twins.write(model)).layers}
    assert [name for name, layer in layers.items() if layer.max_difference is None] == ["depthwise"]
    assert [name for name, layer in layers.items() if not layer.agree] == ["depthwise"]


def test_a_damaged_length_does_not_ask_for_a_terabyte(twins):
    fake, deploy = twins.save("pooling_and_gemm")
    model = onnx.load(deploy)
    (pads,) = (t for t in model.graph.initializer if t.name == "pads")
    pads.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(pads) + (np.arange(8) == 3) * 2**40, "pads"))
    report = verify_twins(fake, twins.write(model))
    assert any("tensor 'pads' differs" in problem for problem in report.problems)
