"""LSTM and GRU: the device's recurrent operator against the float operator between quantized inputs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from twinquant.numerics import unpack_dequant_parameter
from twinquant_onnx.constants import Constant
from twinquant_onnx.rnn import RNN_RULES
from twinquant_onnx.topology import MAIN_DOMAINS
from twinquant_onnx.verify.chains import Chain, read_chain
from twinquant_onnx.verify.contents import Data, packed_axis_of
from twinquant_onnx.verify.deploy_layers import DeployRnn
from twinquant_onnx.verify.twin import Twin

__all__ = ["RnnPair", "compare_rnn_tensors", "pair_rnn", "split_scales"]

Float32Array = npt.NDArray[np.float32]

_QUANT_DTYPE = {8: 2, 16: 6}


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


def pair_rnn(
    deploy: Twin, fake: Twin, rnn: DeployRnn, tensors: dict[str, str]
) -> tuple[RnnPair | None, list[str]]:
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
        return None, [f"{what} has {len(node.input)} inputs and {len(node.output)} outputs, which do not fit its counterpart"]
    branches = [_read_branch(fake, rnn.name, suffix, other.input[slot]) for suffix, slot in (("", 0), ("1", 5))]
    if isinstance(branches[0], str) or isinstance(branches[1], str):
        return None, [f"{what}: in the fake-quant twin, {branch}" for branch in branches if isinstance(branch, str)]
    x, h = branches
    nodes = {index, *x.nodes, *h.nodes}
    given = {name: str(node.input[slot]) for name, slot in rnn.inputs.items()}
    expected = {"X": x.chain.source, "initial_h": h.chain.source, "sequence_lens": str(other.input[4]), "reserved": ""}
    if "initial_c" in given:
        cell = str(other.input[6]) if len(other.input) > 6 else ""
        cast = fake.producer(cell)
        if cast is not None and ".fakequant.cast" in fake.node(cast).name and fake.node(cast).name not in deploy.by_name:
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
    while index is not None and ".fakequant." in fake.node(index).name and ".fakequant.mul" not in fake.node(index).name:
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
        expected["quant_dtype"] = _QUANT_DTYPE.get(chain.num_bits or 0)
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


def compare_rnn_tensors(deploy: Twin, fake: Twin, pair: RnnPair) -> tuple[list[str], list[Constant], list[Constant]]:
    """Compare weights, bias and scales of a recurrent layer.

    Returns:
        what disagrees, and the constants of the deploy and of the fake-quant twin that this covers.
    """
    node, other = deploy.node(pair.rnn.index), fake.node(pair.index)
    what = f"{pair.rnn.op_type} {pair.rnn.name!r}"
    slots = pair.rnn.inputs
    mine = {name: deploy.finder.find(node.input[slots[name]]) for name in ("W", "R", "B", "parameter")}
    its = {name: fake.finder.find(other.input[slot]) for name, slot in (("W", 1), ("R", 2), ("B", 3))}
    covered = [c for c in mine.values() if c is not None], [c for c in its.values() if c is not None]
    weights = [(name, mine[name], its[name]) for name in ("W", "R")]
    parameter = mine["parameter"]
    if parameter is None or any(one is None or two is None for _, one, two in weights):
        return [f"{what}: a weight or the dequantization parameter is not constant"], *covered
    if (mine["B"] is None) != (its["B"] is None) or bool(node.input[slots["B"]]) != (mine["B"] is not None):
        return [f"{what}: only one twin has a constant bias"], *covered
    if parameter.tensor.data_type != onnx.TensorProto.UINT64 or len(parameter.tensor.dims) != 1:
        return [f"{what}: the dequantization parameter is not UINT64 of rank 1"], *covered
    values = deploy.data(parameter).array()
    combined, shift, offset = unpack_dequant_parameter(values)
    problems = [f"{what}: bits 63..32 of the dequantization parameter are not 0"] if np.any(values >> np.uint64(32)) else []
    del shift, offset
    integers: list[npt.NDArray[np.int8]] = []
    floats: list[Float32Array] = []
    for name, one, two in weights:
        assert one is not None and two is not None
        if two.tensor.data_type != onnx.TensorProto.FLOAT or one.tensor.data_type not in _WEIGHT_TYPES:
            return [*problems, f"{what}: {name} has another element type than a quantized weight"], *covered
        packed = packed_axis_of(one.stored_shape, two.stored_shape, 2)
        if packed is None and one.stored_shape != two.stored_shape:
            return [*problems, f"{what}: {name} has dims {list(one.stored_shape)} and {list(two.stored_shape)}"], *covered
        integers.append(deploy.data(one).integers(packed)[0])
        floats.append(fake.data(two).array()[0])
    gates = RNN_RULES[pair.rnn.op_type].gates
    rows = integers[0].shape[0]
    splits = list(split_scales(combined, rows, gates))
    if not splits:
        return [*problems, f"{what}: {combined.size} dequantization parameters do not fit {rows} rows"], *covered
    attempts = [_compare_rows(what, integers, floats, split, pair.scales) for split in splits]
    if mine["B"] is not None and its["B"] is not None:
        one, two = deploy.data(mine["B"]), fake.data(its["B"])
        attempts = [a + _compare_bias(what, one, two, s) for a, s in zip(attempts, splits, strict=True)]
    return problems + min(attempts, key=len), *covered


_WEIGHT_TYPES = (onnx.TensorProto.INT8, onnx.TensorProto.INT4)


def split_scales(combined: Float32Array, rows: int, gates: int) -> Iterator[tuple[Float32Array, Float32Array]]:
    """Split the parameter into the input's and the recurrence's scales, repeated to one a row.

    Each has one scale, one a gate or one a row; the halves are equal unless the total says otherwise.
    """
    lengths = dict.fromkeys((rows, gates, 1))
    pairs = [(one, two) for one in lengths for two in lengths if one + two == combined.size]
    for one, _ in sorted(pairs, key=lambda pair: pair[0] != pair[1]):
        parts = (combined[:one], combined[one:])
        first, second = (np.repeat(part, rows // part.size) for part in parts)
        yield first, second


def _compare_rows(
    what: str,
    integers: list[npt.NDArray[np.int8]],
    floats: list[Float32Array],
    combined: tuple[Float32Array, Float32Array],
    scales: tuple[np.float32, np.float32],
) -> list[str]:
    """Check that every row is integers * scale_w, and that scale_w * scale is the parameter's."""
    problems: list[str] = []
    for name, whole, real, parameter, scale in zip(("W", "R"), integers, floats, combined, scales, strict=True):
        rows = np.arange(whole.shape[0])
        peak = np.abs(whole.astype(np.int16)).argmax(axis=1)
        largest = whole[rows, peak].astype(np.float64)
        with np.errstate(divide="ignore", invalid="ignore"):
            guess = np.where(largest == 0, parameter / np.float64(scale), real[rows, peak] / largest).astype(np.float32)
        fits = np.zeros(whole.shape[0], np.bool_)
        for candidate in _neighbours(guess):
            same = (whole.astype(np.float32) * candidate[:, None] == real).all(axis=1)
            fits |= same & ((candidate * scale == parameter) | (largest == 0))
        if not fits.all():
            row = int(np.argmin(fits))
            problems.append(
                f"{what}: row {row} of {name} is not the deploy twin's integers times one scale that fits the "
                f"dequantization parameter ({int((~fits).sum())} rows in all)"
            )
    return problems


def _neighbours(values: Float32Array) -> Iterator[Float32Array]:
    """Yield float32 values and those one and two steps away: a quotient of rounded values may be off by so much."""
    yield values
    for direction in (np.float32(np.inf), np.float32(-np.inf)):
        once = np.nextafter(values, direction)
        yield once
        yield np.nextafter(once, direction)


def _compare_bias(what: str, deploy: Data, fake: Data, combined: tuple[Float32Array, Float32Array]) -> list[str]:
    if deploy.tensor.data_type != onnx.TensorProto.INT32 or fake.tensor.data_type != onnx.TensorProto.FLOAT:
        return [f"{what}: B is {deploy.type} in the deploy twin and {fake.type} in the other, expected INT32 and FLOAT"]
    if deploy.dims != fake.dims or deploy.dims != (1, 2 * combined[0].size):
        return [f"{what}: B has dims {list(deploy.dims)} and {list(fake.dims)}"]
    expected = deploy.array().astype(np.float32) * np.concatenate(combined)
    different = np.flatnonzero(expected.reshape(-1) != fake.array().reshape(-1))
    if not different.size:
        return []
    return [f"{what}: {different.size} of {expected.size} values of B differ, first at {int(different[0])}"]
