"""Which LSTM and GRU layers the device's operators can replace; all others are refused by the condition they fail."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from twinquant.errors import RecordLayerError, RecordValueError

BATCH, HIDDEN = 2, 6  # as kit.rnn makes them

REFUSED = {
    "LSTM": [
        ({"direction": "reverse"}, "direction"),
        ({"direction": "bidirectional"}, "direction"),
        ({"input_forget": 1}, "input_forget"),
        ({"layout": 1}, "layout"),
        ({"activation_alpha": [0.1]}, "activation_alpha"),
        ({"activation_beta": [0.1]}, "activation_beta"),
        ({"activations": ["Sigmoid", "Tanh", "Tanh"]}, "activations"),
        ({"clip": 1.0}, "clip"),
    ],
    "GRU": [
        ({"direction": "reverse"}, "direction"),
        ({"layout": 1}, "layout"),
        ({"activation_alpha": [0.1]}, "activation_alpha"),
        ({"activation_beta": [0.1]}, "activation_beta"),
        ({"activations": ["Sigmoid", "Tanh"]}, "activations"),
        ({"linear_before_reset": 0}, "linear_before_reset"),
        ({"linear_before_reset": None}, "linear_before_reset"),
    ],
}


@pytest.mark.parametrize(
    ("op_type", "settings", "reason"),
    [(op_type, *case) for op_type, cases in REFUSED.items() for case in cases],
    ids=lambda value: str(value),
)
def test_every_condition_on_attributes_is_refused_by_its_name(kit, rng, op_type, settings, reason):
    model, _, constants = kit.rnn(rng, op_type, **settings)
    with pytest.raises(RecordLayerError, match=rf"'l'.*{reason}"):
        kit.twins(model, {"l": kit.rnn_record(constants, op_type)})


@pytest.mark.parametrize(
    ("op_type", "slot", "name"), [("LSTM", 5, "initial_h"), ("LSTM", 6, "initial_c"), ("GRU", 5, "initial_h")]
)
@pytest.mark.parametrize("how", ["empty", "constant", "Constant node", "Identity of a constant", "left out"])
def test_states_must_be_connected_and_computed(kit, rng, op_type, slot, name, how):
    model, _, constants = kit.rnn(rng, op_type)
    node = model.graph.node[0]
    state = np.zeros((1, BATCH, HIDDEN), np.float32)
    if how == "empty":
        node.input[slot] = ""
    elif how == "left out":
        del node.input[slot:]
    else:
        node.input[slot] = "state"
        source = {"Identity of a constant": "s0"}.get(how, "state")
        if how == "Constant node":
            held = helper.make_node("Constant", [], [source], "k", value=onnx.numpy_helper.from_array(state))
            model.graph.node.insert(0, held)
        else:
            model.graph.initializer.append(onnx.numpy_helper.from_array(state, source))
        if source != "state":
            model.graph.node.insert(0, helper.make_node("Identity", [source], ["state"], "i"))
    with pytest.raises(RecordLayerError, match=rf"'l'.*{name}.*input {slot}"):
        kit.twins(model, {"l": kit.rnn_record(constants, op_type)})


def test_peephole_weights_are_refused(kit, rng):
    model, _, constants = kit.rnn(rng, "LSTM")
    model.graph.node[0].input.append("p")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((1, 3 * HIDDEN), np.float32), "p"))
    with pytest.raises(RecordLayerError, match=r"'l'.*peephole"):
        kit.twins(model, {"l": kit.rnn_record(constants, "LSTM")})


def test_an_empty_peephole_input_is_accepted(kit, rng):
    model, _, constants = kit.rnn(rng, "LSTM")
    model.graph.node[0].input.append("")
    deploy = kit.twins(model, {"l": kit.rnn_record(constants, "LSTM")}).deploy
    assert len(deploy.graph.node[0].input) == 9


@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
def test_missing_outputs_are_refused(kit, rng, op_type):
    model, _, constants = kit.rnn(rng, op_type)
    del model.graph.node[0].output[-1]
    del model.graph.output[-1]
    with pytest.raises(RecordLayerError, match=r"'l'.*outputs"):
        kit.twins(model, {"l": kit.rnn_record(constants, op_type)})


@pytest.mark.parametrize(("slot", "what"), [(1, "weight"), (2, "recurrence weight"), (3, "bias")])
@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
def test_computed_weights_and_biases_are_refused(kit, rng, op_type, slot, what):
    model, _, constants = kit.rnn(rng, op_type)
    node = model.graph.node[0]
    model.graph.node.insert(0, helper.make_node("Relu", [node.input[slot]], ["computed"], "r"))
    model.graph.node[1].input[slot] = "computed"
    with pytest.raises(RecordLayerError, match=rf"'l'.*{what}.*not constant"):
        kit.twins(model, {"l": kit.rnn_record(constants, op_type)})


def test_two_directions_in_the_weight_are_refused(kit, rng):
    model, _, constants = kit.rnn(rng, "LSTM")
    for tensor in model.graph.initializer:
        doubled = np.concatenate([constants[tensor.name]] * 2)
        tensor.CopyFrom(onnx.numpy_helper.from_array(doubled, tensor.name))
    with pytest.raises(RecordLayerError, match=r"'l'.*'w' has shape"):
        kit.twins(model, {"l": kit.rnn_record(constants, "LSTM")})


@pytest.mark.parametrize("name", ["w", "r", "b"])
def test_shapes_that_do_not_belong_together_are_refused(kit, rng, name):
    model, _, constants = kit.rnn(rng, "LSTM")
    for tensor in model.graph.initializer:
        if tensor.name == name:
            cut = constants[name][:, :-1] if name == "b" else constants[name][:, :-4]
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(cut), name))
    with pytest.raises(RecordLayerError, match=rf"'l'.*'{name}' has shape"):
        kit.twins(model, {"l": kit.rnn_record(constants, "LSTM")})


@pytest.mark.parametrize("field", ["scale_h", "offset_h", "scale_r", "offset_r"])
def test_factors_of_the_hidden_state_are_needed(kit, rng, field):
    model, _, constants = kit.rnn(rng, "LSTM")
    made = kit.rnn_record(constants, "LSTM")
    del made[field]
    with pytest.raises(RecordValueError, match=field):
        kit.twins(model, {"l": made})


@pytest.mark.parametrize("fields", [{"act_type": "INT4"}, {"dst_type": "INT4"}], ids=str)
def test_4_bit_activations_are_refused(kit, rng, fields):
    model, _, constants = kit.rnn(rng, "LSTM")
    with pytest.raises(RecordValueError, match=rf"{next(iter(fields))}.*INT4"):
        kit.twins(model, {"l": kit.rnn_record(constants, "LSTM", **fields)})
