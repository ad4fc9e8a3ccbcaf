"""LSTM and GRU: the device's recurrent operator against the float operator between quantized inputs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from twinquant_onnx.rnn import QUANT_DTYPES
from twinquant_onnx.topology import MAIN_DOMAINS
from twinquant_onnx.verify.chains import Chain, read_chain
from twinquant_onnx.verify.deploy_layers import DeployRnn
from twinquant_onnx.verify.twin import Twin

__all__ = ["RnnPair", "pair_rnn"]


@dataclass(frozen=True, slots=True)
class RnnPair:
    """A recurrent layer in the fake-quant twin.

    Attributes:
        rnn: the layer in the deploy twin.
        index: position of the LSTM or GRU.
        nodes: positions of all nodes that belong to it.
        chains: the chains of X and of the hidden state.
        scales: float32, the quantization scales of X and of the hidden state.
        outputs: the tensors that correspond to the deploy layer's outputs.
    """

    rnn: DeployRnn
    index: int
    nodes: frozenset[int]
    chains: tuple[Chain, Chain]
    scales: tuple[np.float32, np.float32]
    outputs: tuple[str, ...]


def pair_rnn(deploy: Twin, fake: Twin, rnn: DeployRnn, tensors: dict[str, str]) -> tuple[RnnPair | None, list[str]]:
    """Match a recurrent operator with its float counterpart and compare wiring and attributes.

    Adds its outputs to `tensors`, which translates the deploy twin's names.
    """
    node = deploy.node(rnn.index)
    what = f"{rnn.op_type} {rnn.name!r}"
    index = fake.by_name.get(rnn.name)
    other = None if index is None else fake.node(index)
    if index is None or other is None or other.op_type != rnn.op_type or other.domain not in MAIN_DOMAINS:
        return None, [f"{what}: the fake-quant twin has no {rnn.op_type} of that name"]
    if len(node.input) != len(rnn.inputs) or len(other.input) <= 5 or len(node.output) != len(other.output):
        return None, [
            f"{what} has {len(node.input)} inputs and {len(node.output)} outputs, which do not fit its counterpart"
        ]
    x, h = (_read_branch(fake, rnn.name, suffix, other.input[slot]) for suffix, slot in (("", 0), ("1", 5)))
    if isinstance(x, str) or isinstance(h, str):
        return None, [f"{what}: in the fake-quant twin, {branch}" for branch in (x, h) if isinstance(branch, str)]
    nodes = {index, *x.nodes, *h.nodes}
    given = {name: str(node.input[slot]) for name, slot in rnn.inputs.items()}
    expected = {"X": x.chain.source, "initial_h": h.chain.source, "sequence_lens": str(other.input[4]), "reserved": ""}
    if "initial_c" in given:
        cell = str(other.input[6]) if len(other.input) > 6 else ""
        cast = fake.producer(cell)
        if (
            cast is not None
            and ".fakequant.cast" in fake.node(cast).name
            and fake.node(cast).name not in deploy.by_name
        ):
            nodes.add(cast)
            cell = str(fake.node(cast).input[0])
        expected["initial_c"] = cell
    problems = [
        f"{what} reads {given[name]!r} as {name}, its counterpart reads {wanted!r}"
        for name, wanted in expected.items()
        if (tensors.get(given[name]) if given[name] else "") != wanted
    ]
    outputs: list[str] = []
    for result in other.output:
        reader = fake.topology.sole_reader(result) if result else None
        name = fake.node(reader.node).name if reader is not None else ""
        if reader is not None and ".fakedequant.cast" in name and name not in deploy.by_name:
            nodes.add(reader.node)
            outputs.append(str(fake.node(reader.node).output[0]))
        else:
            outputs.append(str(result))
    tensors.update({one: two for one, two in zip(node.output, outputs, strict=True) if one})
    pair = RnnPair(rnn, index, frozenset(nodes), (x.chain, h.chain), (x.scale, h.scale), tuple(outputs))
    return pair, problems + _compare_attributes(what, deploy, fake, pair)


@dataclass(frozen=True, slots=True)
class _Branch:
    chain: Chain
    scale: np.float32
    nodes: frozenset[int]


def _read_branch(fake: Twin, layer: str, suffix: str, tensor: str) -> _Branch | str:
    """Read the chain and the Mul back to real values in front of one input of the float operator."""
    back = fake.producer(tensor)
    if back is None or fake.node(back).op_type != "Mul" or ".fake_antiquant.mul" not in fake.node(back).name:
        return f"{tensor!r} is not made by the Mul {layer + '.anti_quant' + suffix + '.fake_antiquant.mul'!r}"
    node = fake.node(back)
    scale = fake.scalar(node.input[1])
    constant = fake.finder.find(node.input[1])
    index = fake.producer(node.input[0])
    while (
        index is not None and ".fakequant." in fake.node(index).name and ".fakequant.mul" not in fake.node(index).name
    ):
        index = fake.producer(fake.node(index).input[0])
    if index is None or scale is None or constant is None or ".fakequant.mul" not in fake.node(index).name:
        return f"{node.input[0]!r} does not come from a chain of fake quantization"
    chain = read_chain(fake, index)
    if isinstance(chain, str):
        return chain
    known = {back} if constant.node is None else {back, constant.node}
    return _Branch(chain, scale, chain.nodes | known)


def _compare_attributes(what: str, deploy: Twin, fake: Twin, pair: RnnPair) -> list[str]:
    given = {a.name: onnx.helper.get_attribute_value(a) for a in deploy.node(pair.rnn.index).attribute}
    float_node = {a.name: onnx.helper.get_attribute_value(a) for a in fake.node(pair.index).attribute}
    is_lstm = pair.rnn.op_type == "LSTM"
    expected: dict[str, object] = {
        "hidden_size": float_node.get("hidden_size", given.get("hidden_size")),
        "activation_alpha": [],
        "activation_beta": [],
        "activations": [],
        "clip": float_node.get("clip", -1.0),
        "direction": b"forward",
        "input_forget" if is_lstm else "linear_before_reset": int(not is_lstm),
        "quant_sqrt_mode_x": 0,
        "quant_sqrt_mode_h": 0,
    }
    for name, chain in zip(("x", "h"), pair.chains, strict=True):
        expected[f"quant_scale_{name}"] = float(chain.scale)
        expected[f"quant_offset_{name}"] = chain.offset
        expected["quant_dtype"] = QUANT_DTYPES.get(chain.num_bits or 0)
    problems = [
        f"{what}: {name} is {given.get(name)!r}, expected {value!r} as in the fake-quant twin"
        for name, value in expected.items()
        if name not in given or given[name] != value
    ]
    problems += [f"{what}: unknown attribute {name!r}" for name in given if name not in expected]
    for chain, scale in zip(pair.chains, pair.scales, strict=True):
        if np.float32(1.0) / scale != chain.scale:
            problems.append(f"{what}: the fake-quant twin quantizes with {chain.scale!r} and goes back with {scale!r}")
    return problems
