"""Recurrent layers: what is compared, and how the simulated operator works."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from twinquant_onnx.verify import verify_twins


def change(model, name, where, by):
    (tensor,) = (t for t in model.graph.initializer if t.name == name)
    values = numpy_helper.to_array(tensor).copy()
    values[where] += np.array(by).astype(values.dtype)
    tensor.CopyFrom(numpy_helper.from_array(values, name))


@pytest.mark.parametrize(("tensor", "where"), [("W", (0, 3, 2)), ("R", (0, 1, 0)), ("B", (0, 5)), ("B", (0, 29))])
def test_one_other_integer_is_caught(tensor, where, twins):
    fake, deploy = twins.save("lstm")
    model = onnx.load(deploy)
    change(model, tensor, where, 1)
    (layer,) = verify_twins(fake, twins.write(model)).layers
    assert any(f"{tensor}:" in problem for problem in layer.problems)


def test_the_smallest_step_of_every_scale_is_caught(twins):
    fake, deploy = twins.save("gru")
    count = 2 * 3
    for place in range(count):
        model = onnx.load(deploy)
        change(model, "rnn.dequant.param", place, 1)
        assert not verify_twins(fake, twins.write(model)).agree, place


@pytest.mark.parametrize(
    "name", ["quant_scale_x", "quant_scale_h", "quant_offset_x", "quant_offset_h", "quant_dtype", "clip", "hidden_size"]
)
def test_every_attribute_is_compared(name, twins):
    fake, deploy = twins.save("lstm")
    model = onnx.load(deploy)
    (attribute,) = (a for node in model.graph.node for a in node.attribute if a.name == name)
    if attribute.type == onnx.AttributeProto.INT:
        attribute.i += 1
    else:
        attribute.f = float(np.nextafter(np.float32(attribute.f), np.float32(np.inf)))
    (layer,) = verify_twins(fake, twins.write(model)).layers
    assert any(name in problem for problem in layer.problems)


def test_exchanged_states_are_caught(twins):
    fake, deploy = twins.save("lstm")
    model = onnx.load(deploy)
    (node,) = model.graph.node
    node.input[3], node.input[4] = node.input[4], node.input[3]
    (layer,) = verify_twins(fake, twins.write(model)).layers
    assert any("reads 'c' as initial_h" in problem for problem in layer.problems)


def test_weights_with_a_scale_a_row_and_a_gate_are_told_apart(twins, builder):
    """The parameter then holds 12 and 3 scales, or 3 and 12: only the fake-quant twin tells."""
    for rows, gates in ((12, 3), (3, 12)):
        b = builder(1)
        b.weight("W", 1, 12, 6), b.weight("R", 1, 12, 4)
        b.add("GRU", "x W R - - h", "y hn", "rnn", hidden_size=4, linear_before_reset=1)
        scales = "".join(f"    scale_r: {v!r}\n    offset_r: 0\n" for v in np.linspace(0.004, 0.006, gates).tolist())
        hidden = "    scale_h: 0.01\n    offset_h: 3\n" + scales
        b.quantize("rnn", np.linspace(0.004, 0.008, rows).tolist(), extra=hidden)
        pair = twins.save_model(b.model({"x": [3, 2, 6], "h": [1, 2, 4]}, ["y", "hn"]), "".join(b.records))
        report = verify_twins(*pair)
        assert report.agree, report
        assert report.layers[0].free_running < 1e-6
