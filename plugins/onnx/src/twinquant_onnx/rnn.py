"""Which LSTM and GRU nodes the device's recurrent operators can replace."""

from __future__ import annotations

from dataclasses import dataclass

import onnx

from twinquant_onnx.constants import ConstantFinder

__all__ = ["QUANT_DTYPES", "RNN_RULES", "RnnRules", "rnn_refusal"]

QUANT_DTYPES = {8: 2, 16: 6}
"""The recurrent operators' attribute `quant_dtype` by the bits of the activation."""


@dataclass(frozen=True, slots=True)
class RnnRules:
    """What one recurrent operator needs.

    Attributes:
        gates: number of gates.
        outputs: how many outputs the node has.
        states: inputs that are connected and not constant, as (name, input).
        absent: attributes that are not there.
        fixed: attributes that have this value if they are there.
        deploy_op_type: the operator of the deploy twin.
        peephole: the input of the peephole weights, which is not connected.
    """

    gates: int
    outputs: int
    states: tuple[tuple[str, int], ...]
    absent: tuple[str, ...]
    fixed: tuple[tuple[str, int], ...]
    deploy_op_type: str
    peephole: int | None = None


RNN_RULES = {
    "LSTM": RnnRules(
        gates=4,
        outputs=3,
        states=(("initial_h", 5), ("initial_c", 6)),
        absent=("activation_alpha", "activation_beta", "activations", "clip"),
        fixed=(("input_forget", 0), ("layout", 0)),
        deploy_op_type="BasicLSTMInplaceFillWindowCache",
        peephole=7,
    ),
    "GRU": RnnRules(
        gates=3,
        outputs=2,
        states=(("initial_h", 5),),
        absent=("activation_alpha", "activation_beta", "activations"),
        fixed=(("layout", 0),),
        deploy_op_type="BasicGRUInplaceFillWindowCache",
    ),
}


def rnn_refusal(node: onnx.NodeProto, finder: ConstantFinder) -> str | None:
    """Return which condition an LSTM or GRU fails, or None if it can be quantized."""
    rules = RNN_RULES[node.op_type]
    attributes = {attribute.name: attribute for attribute in node.attribute}
    if "direction" in attributes and attributes["direction"].s != b"forward":
        return f"direction is {attributes['direction'].s.decode(errors='replace')!r}, only 'forward' is supported"
    for name, value in rules.fixed:
        if name in attributes and attributes[name].i != value:
            return f"{name} is {attributes[name].i}, only {value} is supported"
    for name in rules.absent:
        if name in attributes:
            return f"the attribute {name!r} is not supported"
    if node.op_type == "GRU" and ("linear_before_reset" not in attributes or not attributes["linear_before_reset"].i):
        return "linear_before_reset is not set; only the variant that applies it is supported"
    for name, slot in rules.states:
        if len(node.input) <= slot or not node.input[slot]:
            return f"{name} (input {slot}) is not connected"
        if finder.find(node.input[slot]) is not None:
            return f"{name} (input {slot}) is constant; it must be computed or a graph input"
    if rules.peephole is not None and len(node.input) > rules.peephole and node.input[rules.peephole]:
        return f"peephole weights (input {rules.peephole}) are not supported"
    if len(node.output) != rules.outputs:
        return f"it has {len(node.output)} outputs, exactly {rules.outputs} are supported"
    return None
