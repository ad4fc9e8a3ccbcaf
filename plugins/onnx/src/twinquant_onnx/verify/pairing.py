"""Matching the nodes and tensors of two twins: which node feeds which, with the inserted chains mapped away."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np
import onnx

from twinquant_onnx.topology import MAIN_DOMAINS, captured_names
from twinquant_onnx.verify.chains import Chain, read_chain
from twinquant_onnx.verify.deploy_layers import DEPLOY_RNN, DeployLayer, DeployRnn, find_layers, find_rnns
from twinquant_onnx.verify.findings import Findings
from twinquant_onnx.verify.nodes import compare_attributes, compare_operators, strip_trailing
from twinquant_onnx.verify.rnn import RnnPair, pair_rnn
from twinquant_onnx.verify.twin import Twin

__all__ = ["FakeDequant", "Pairing", "pair_twins"]


@dataclass(frozen=True, slots=True)
class FakeDequant:
    """What stands for an AscendDequant in the fake-quant twin.

    Attributes:
        mul: position of the Mul by the scale.
        scale: the tensor that holds the scale.
        product: the Mul's output.
    """

    mul: int
    scale: str
    product: str


@dataclass(slots=True)
class Pairing:
    """How two twins correspond.

    Attributes:
        deploy: the deploy twin.
        fake: the fake-quant twin.
        layers: the quantized layers of the deploy twin, in graph order.
        rnns: its recurrent layers, paired.
        chains: the chain that stands for an AscendQuant, by the AscendQuant's position.
        dequants: what stands for an AscendDequant, by its position.
        counterparts: position of a deploy node's counterpart in the fake-quant twin.
        tensors: what the deploy twin's tensors are called in the fake-quant twin.
        known: positions of the fake-quant twin's nodes that belong to something in the deploy twin.
        findings: what disagrees.
    """

    deploy: Twin
    fake: Twin
    layers: list[DeployLayer]
    findings: Findings
    rnns: dict[int, RnnPair] = field(default_factory=dict)
    chains: dict[int, Chain] = field(default_factory=dict)
    dequants: dict[int, FakeDequant] = field(default_factory=dict)
    counterparts: dict[int, int] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    known: set[int] = field(default_factory=set)


def pair_twins(deploy: Twin, fake: Twin) -> Pairing:
    """Match two twins node by node, in the deploy twin's order, and note every difference in structure."""
    findings = Findings()
    layers, problems = find_layers(deploy)
    for problem in problems:
        findings.add(problem)
    pairing = Pairing(deploy, fake, layers, findings)
    rnns = {rnn.index: rnn for rnn in find_rnns(deploy)}
    for rnn in rnns.values():
        findings.owners[rnn.index] = rnn.name
    for layer in layers:
        findings.owners.setdefault(layer.quant, layer.name)
        findings.owners.update(dict.fromkeys(layer.nodes, layer.name))
    main = deploy.graph.model.graph
    pairing.tensors.update({value.name: value.name for value in main.input})
    pairing.tensors.update({tensor.name: tensor.name for tensor in main.initializer})
    pairing.tensors.update({tensor.values.name: tensor.values.name for tensor in main.sparse_initializer})
    free = _slots_without_wiring(pairing)
    for index, node in enumerate(main.node):
        _check_reads(pairing, index)
        if index in rnns:
            _add_rnn(pairing, rnns[index])
        elif node.domain in MAIN_DOMAINS and node.op_type in _INSERTED:
            findings.add_at(index, _INSERTED[node.op_type](pairing, index))
        elif _is_deploy_only_cast(pairing, index):
            pairing.tensors[node.output[0]] = pairing.tensors.get(node.input[0], "")
        else:
            findings.add_at(index, _pair_ordinary(pairing, index, free.get(index, frozenset())))
    _check_rest(pairing)
    return pairing


def _slots_without_wiring(pairing: Pairing) -> dict[int, frozenset[int]]:
    """List the inputs whose tensors are compared by content instead of by name: weights and biases."""
    free: dict[int, frozenset[int]] = {}
    for layer in pairing.layers:
        if layer.op_type != "AveragePool":
            free[layer.index] = frozenset((1, 2) if layer.add is None else (1,))
        if layer.add is not None:
            free[layer.add] = frozenset((1,))
    return free


def _check_reads(pairing: Pairing, index: int) -> None:
    """Note inputs that nothing makes, or that are made further back, and outputs that exist already."""
    node = pairing.deploy.node(index)
    for name in {*filter(None, node.input), *captured_names(node)}:
        if name not in pairing.tensors:
            pairing.findings.add_at(index, [f"node {node.name!r} reads tensor {name!r}, which nothing before it makes"])
    for name in filter(None, node.output):
        if name in pairing.tensors:
            pairing.findings.add_at(index, [f"tensor {name!r} is made twice, the second time by node {node.name!r}"])
    if pairing.deploy.by_name[node.name] != index:
        pairing.findings.add_at(index, [f"two nodes of the deploy twin are called {node.name!r}"])


def _inserted_node(pairing: Pairing, base: str) -> int | None:
    """Find a node that only the fake-quant twin has by its name, which may carry a numeric suffix."""
    pattern = re.compile(re.escape(base) + r"(_\d+)?")
    if base in pairing.fake.by_name and base not in pairing.deploy.by_name:
        return pairing.fake.by_name[base]
    found = [n for n in pairing.fake.by_name if pattern.fullmatch(n) and n not in pairing.deploy.by_name]
    return pairing.fake.by_name[found[0]] if len(found) == 1 else None


def _attributes(node: onnx.NodeProto) -> dict[str, onnx.AttributeProto]:
    return {attribute.name: attribute for attribute in node.attribute}


_RANGES = {b"INT4": 4, b"INT8": 8, b"INT16": 16}


def _pair_quant(pairing: Pairing, index: int) -> list[str]:
    node = pairing.deploy.node(index)
    what = f"AscendQuant {node.name!r}"
    if len(node.input) != 1 or len(node.output) != 1:
        return [f"{what} has {len(node.input)} inputs and {len(node.output)} outputs, expected 1 and 1"]
    first = _inserted_node(pairing, f"{node.name}.fakequant.mul")
    if first is None:
        return [f"{what} has no counterpart: the fake-quant twin has no node {node.name + '.fakequant.mul'!r}"]
    chain = read_chain(pairing.fake, first)
    if isinstance(chain, str):
        return [f"{what}: in the fake-quant twin, {chain}"]
    pairing.chains[index] = chain
    pairing.known |= chain.nodes
    pairing.tensors[node.output[0]] = chain.output
    problems: list[str] = []
    if not any(layer.quant == index for layer in pairing.layers):
        problems.append(f"{what} quantizes for no layer")
    if pairing.tensors.get(node.input[0]) != chain.source:
        problems.append(f"{what} reads {node.input[0]!r}, its counterpart reads {chain.source!r}")
    given = _attributes(node)
    if given.keys() != {"scale", "offset", "dst_type"}:
        return [*problems, f"{what} has attributes {sorted(given)}, expected scale, offset and dst_type"]
    if np.float32(given["scale"].f) != chain.scale:
        problems.append(f"{what}: scale is {given['scale'].f!r}, in the fake-quant twin {float(chain.scale)!r}")
    if given["offset"].f != chain.offset:
        problems.append(f"{what}: offset is {given['offset'].f!r}, in the fake-quant twin {chain.offset!r}")
    if _RANGES.get(given["dst_type"].s) != chain.num_bits or chain.num_bits is None:
        kind = given["dst_type"].s.decode(errors="replace")
        problems.append(f"{what}: dst_type is {kind!r}, the fake-quant twin clips to [{chain.low:g}, {chain.high:g}]")
    return problems


def _pair_dequant(pairing: Pairing, index: int) -> list[str]:
    node = pairing.deploy.node(index)
    what = f"AscendDequant {node.name!r}"
    base = re.sub(r"\.dequant(_\d+)?$", "", node.name)
    mul_index = _inserted_node(pairing, f"{base}.fakedequant.mul")
    if mul_index is None or len(node.output) != 1 or not node.input:
        return [f"{what} has no counterpart: the fake-quant twin has no node {base + '.fakedequant.mul'!r}"]
    mul = pairing.fake.node(mul_index)
    pairing.known.add(mul_index)
    if mul.op_type != "Mul" or len(mul.input) != 2:
        return [f"{what}: {mul.name!r} in the fake-quant twin is no Mul of two tensors"]
    constant = pairing.fake.finder.find(mul.input[1])
    if constant is not None and constant.node is not None:
        pairing.known.add(constant.node)
    pairing.dequants[index] = FakeDequant(mul_index, mul.input[1], mul.output[0])
    pairing.tensors[node.output[0]] = mul.output[0]
    problems: list[str] = []
    owner = pairing.findings.owners.get(index)
    if owner is not None and owner != base:
        problems.append(f"{what} stands behind layer {owner!r}")
    if pairing.tensors.get(node.input[0]) != mul.input[0]:
        problems.append(f"{what} reads {node.input[0]!r}, its counterpart reads {mul.input[0]!r}")
    given = _attributes(node)
    if given.keys() != {"dtype"}:
        return [*problems, f"{what} has attributes {sorted(given)}, expected dtype"]
    element_type = onnx.TensorProto.FLOAT
    cast = _inserted_node(pairing, f"{base}.fakedequant.cast")
    if cast is not None and pairing.fake.node(cast).input[0] == mul.output[0]:
        element_type = _attributes(pairing.fake.node(cast))["to"].i
        if element_type == onnx.TensorProto.FLOAT16:
            pairing.known.add(cast)
            pairing.tensors[node.output[0]] = pairing.fake.node(cast).output[0]
    expected = int(element_type == onnx.TensorProto.FLOAT16)
    if given["dtype"].i != expected:
        problems.append(f"{what}: dtype is {given['dtype'].i}, expected {expected} as the fake-quant twin goes on")
    return problems


def _pair_unexpected(pairing: Pairing, index: int) -> list[str]:
    node = pairing.deploy.node(index)
    mul_index = _inserted_node(pairing, f"{node.name}.fake_antiquant.mul")
    if mul_index is None or len(node.input) != 1 or len(node.output) != 1:
        return [f"AscendAntiQuant {node.name!r} has no counterpart in the fake-quant twin"]
    mul = pairing.fake.node(mul_index)
    pairing.known.add(mul_index)
    constant = pairing.fake.finder.find(mul.input[1])
    if constant is not None and constant.node is not None:
        pairing.known.add(constant.node)
    pairing.tensors[node.output[0]] = mul.output[0]
    problems: list[str] = []
    if pairing.tensors.get(node.input[0]) != mul.input[0]:
        problems.append(f"AscendAntiQuant {node.name!r} reads {node.input[0]!r}, its counterpart {mul.input[0]!r}")
    given = _attributes(node)
    scale = pairing.fake.scalar(mul.input[1])
    if given.keys() != {"scale", "offset", "dst_type"} or np.float32(given["scale"].f) != scale:
        problems.append(f"AscendAntiQuant {node.name!r} multiplies by another scale than the fake-quant twin, {scale}")
    return problems


_INSERTED = {"AscendQuant": _pair_quant, "AscendDequant": _pair_dequant, "AscendAntiQuant": _pair_unexpected}


def _is_deploy_only_cast(pairing: Pairing, index: int) -> bool:
    """Recognize the Cast through which a layer with 4-bit activations reads its integer bias."""
    node = pairing.deploy.node(index)
    if node.op_type != "Cast" or ".bias_quant" not in node.name or node.name in pairing.fake.by_name:
        return False
    constant = pairing.deploy.finder.find(node.input[0])
    return constant is not None and constant.tensor.data_type == onnx.TensorProto.INT32


def _pair_ordinary(pairing: Pairing, index: int, free: frozenset[int]) -> list[str]:
    deploy, fake = pairing.deploy, pairing.fake
    node = deploy.node(index)
    other_index = fake.by_name.get(node.name)
    if other_index is None:
        cast = re.sub(r"\.dequant(_\d+)?\.cast(_\d+)?$", ".fakedequant.cast", node.name)
        other_index = _inserted_node(pairing, cast) if cast != node.name else None
    if other_index is None:
        return [f"only the deploy twin has node {node.name!r} ({node.op_type})"]
    other = fake.node(other_index)
    pairing.counterparts[index] = other_index
    pairing.known.add(other_index)
    problems = compare_operators(node, other)
    if not _holds_quantized_tensor(pairing, index):
        stores = (deploy.graph.store, fake.graph.store)
        problems += compare_attributes(node, other, stores, pairing.tensors)
    ones, others = strip_trailing(list(node.input)), strip_trailing(list(other.input))
    if _ignores_zero_pad_value(pairing, index):
        ones, others = ones[:2], others[:2]
    if len(ones) != len(others):
        problems.append(f"node {node.name!r} has {len(ones)} inputs in the deploy twin and {len(others)} in the other")
    for slot, (one, two) in enumerate(zip(ones, others, strict=False)):
        if slot in free and bool(one) == bool(two):
            continue
        if (pairing.tensors.get(one) if one else "") != two:
            problems.append(
                f"node {node.name!r} reads {one!r} as input {slot} in the deploy twin, which corresponds to "
                f"{pairing.tensors.get(one)!r}; in the fake-quant twin it reads {two!r}"
            )
    if len(node.output) != len(other.output):
        problems.append(f"node {node.name!r} has {len(node.output)} outputs in the deploy twin, {len(other.output)} in the other")
    pairing.tensors.update({one: two for one, two in zip(node.output, other.output, strict=False) if one})
    return problems


def _holds_quantized_tensor(pairing: Pairing, index: int) -> bool:
    """Tell whether a node is the Constant that a weight or bias lies in; its content is compared as integers."""
    constants = [c for layer in pairing.layers for c in (layer.weight, layer.bias) if c is not None]
    return any(constant.node == index for constant in constants)


def _ignores_zero_pad_value(pairing: Pairing, index: int) -> bool:
    """Recognize a Pad of quantized values whose constant, 0, the fake-quant twin leaves away for its other type."""
    node = pairing.deploy.node(index)
    if node.op_type != "Pad" or len(node.input) < 3 or not any(index in layer.path for layer in pairing.layers):
        return False
    constant = pairing.deploy.finder.find(node.input[2])
    return constant is not None and not np.any(pairing.deploy.data(constant).array())


def _add_rnn(pairing: Pairing, rnn: DeployRnn) -> None:
    made, problems = pair_rnn(pairing.deploy, pairing.fake, rnn, pairing.tensors)
    for problem in problems:
        pairing.findings.add(problem, rnn.name)
    if made is not None:
        pairing.rnns[rnn.index] = made
        pairing.counterparts[rnn.index] = made.index
        pairing.known |= made.nodes


def _check_rest(pairing: Pairing) -> None:
    """Note nodes that only the fake-quant twin has, and outputs that come from elsewhere."""
    fake = pairing.fake.graph.model.graph
    for index, node in enumerate(fake.node):
        if index not in pairing.known:
            pairing.findings.add(f"only the fake-quant twin has node {node.name!r} ({node.op_type})")
    for value in pairing.deploy.graph.model.graph.output:
        if pairing.tensors.get(value.name) != value.name:
            pairing.findings.add(f"output {value.name!r} of the deploy twin comes from elsewhere than the fake-quant twin's")
