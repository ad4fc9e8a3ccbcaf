"""Matching two twins node by node: which node feeds which, with the inserted chains mapped away."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

import numpy as np

from twinquant_onnx.topology import MAIN_DOMAINS, captured_names
from twinquant_onnx.verify.correspondence import Pairing
from twinquant_onnx.verify.deploy_layers import DeployRnn, find_layers, find_rnns
from twinquant_onnx.verify.findings import Findings
from twinquant_onnx.verify.inserted import INSERTED, check_bias_casts
from twinquant_onnx.verify.nodes import compare_attributes, compare_operators, strip_trailing
from twinquant_onnx.verify.rnn import pair_rnn
from twinquant_onnx.verify.twin import Twin

__all__ = ["pair_twins"]


@dataclass(slots=True)
class _Exceptions:
    """Where nodes of the two twins differ by design.

    Attributes:
        inputs: inputs that hold weights and biases, by position: compared by content, not by name.
        constants: positions of Constant nodes that hold quantized tensors: compared as integers.
        pads: positions of Pads of quantized values.
    """

    inputs: dict[int, frozenset[int]] = field(default_factory=dict)
    constants: set[int] = field(default_factory=set)
    pads: set[int] = field(default_factory=set)


def pair_twins(deploy: Twin, fake: Twin) -> Pairing:
    """Match two twins node by node, in the deploy twin's order; every difference in structure is among the findings."""
    findings = Findings()
    layers, problems = find_layers(deploy)
    findings.add_structural(problems)
    pairing = Pairing(deploy, fake, layers, findings)
    rnns = {rnn.index: rnn for rnn in find_rnns(deploy)}
    findings.owners.update({rnn.index: rnn.name for rnn in rnns.values()})
    for layer in layers:
        findings.owners.setdefault(layer.quant, layer.name)
        findings.owners.update(dict.fromkeys(layer.nodes, layer.name))
    main = deploy.graph.model.graph
    pairing.tensors.update({value.name: value.name for value in main.input})
    pairing.tensors.update({tensor.name: tensor.name for tensor in main.initializer})
    pairing.tensors.update({tensor.values.name: tensor.values.name for tensor in main.sparse_initializer})
    exceptions = _exceptions(pairing, rnns)
    bias_casts = check_bias_casts(pairing)
    for index, node in enumerate(main.node):
        findings.add_at(index, _check_reads(pairing, index))
        if index in rnns:
            _add_rnn(pairing, rnns[index])
        elif node.domain in MAIN_DOMAINS and node.op_type in INSERTED:
            findings.add_at(index, INSERTED[node.op_type](pairing, index))
        elif index in bias_casts:
            pairing.tensors[node.output[0]] = pairing.tensors.get(node.input[0], "")
        else:
            findings.add_at(index, _pair_ordinary(pairing, index, exceptions))
    _check_rest(pairing)
    return pairing


def _exceptions(pairing: Pairing, rnns: dict[int, DeployRnn]) -> _Exceptions:
    found = _Exceptions()
    for layer in pairing.layers:
        if layer.op_type != "AveragePool":
            found.inputs[layer.index] = frozenset((1, 2))
        if layer.add is not None:
            found.inputs[layer.add] = frozenset((1,))
        found.pads.update(layer.path)
        found.constants.update(c.node for c in (layer.weight, layer.bias) if c is not None and c.node is not None)
    for rnn in rnns.values():
        node = pairing.deploy.node(rnn.index)
        tensors = [node.input[slot] for name, slot in rnn.inputs.items() if name in "WRB" and slot < len(node.input)]
        constants = [pairing.deploy.finder.find(tensor) for tensor in tensors]
        found.constants.update(c.node for c in constants if c is not None and c.node is not None)
    return found


def _check_reads(pairing: Pairing, index: int) -> list[str]:
    """Find inputs that nothing before makes, outputs that exist already and names that are taken."""
    node = pairing.deploy.node(index)
    read = dict.fromkeys([*filter(None, node.input), *sorted(captured_names(node))])
    problems = [
        f"node {node.name!r} reads tensor {name!r}, which nothing before it makes"
        for name in read
        if name not in pairing.tensors
    ]
    problems += [
        f"tensor {name!r} is made twice, the second time by node {node.name!r}"
        for name in node.output
        if name in pairing.tensors
    ]
    if pairing.deploy.by_name[node.name] != index:
        problems.append(f"two nodes of the deploy twin are called {node.name!r}")
    return problems


def _counterpart(pairing: Pairing, name: str) -> int | None:
    """Find a node by its name; the Cast behind an AscendDequant has another one in the fake-quant twin."""
    index = pairing.fake.by_name.get(name)
    cast = re.sub(r"\.dequant(_\d+)?\.cast(_\d+)?$", ".fakedequant.cast", name)
    return pairing.find_inserted(cast) if index is None and cast != name else index


def _pair_ordinary(pairing: Pairing, index: int, exceptions: _Exceptions) -> list[str]:
    deploy, fake = pairing.deploy, pairing.fake
    node = deploy.node(index)
    other_index = _counterpart(pairing, node.name)
    if other_index is None:
        return [f"only the deploy twin has node {node.name!r} ({node.op_type})"]
    other = fake.node(other_index)
    pairing.counterparts[index] = other_index
    pairing.known.add(other_index)
    problems = compare_operators(node, other)
    if index in exceptions.constants:
        extra = {a.name for a in node.attribute} ^ {a.name for a in other.attribute}
        problems += [f"node {node.name!r}: only one twin has attribute {name!r}" for name in sorted(extra)]
    else:
        problems += compare_attributes(node, other, (deploy.graph.store, fake.graph.store), pairing.tensors)
    problems += _compare_inputs(pairing, index, other_index, exceptions)
    if len(node.output) != len(other.output):
        problems.append(
            f"node {node.name!r} has {len(node.output)} outputs in the deploy twin, {len(other.output)} in the other"
        )
    pairing.tensors.update({one: two for one, two in zip(node.output, other.output, strict=False) if one})
    return problems


def _compare_inputs(pairing: Pairing, index: int, other_index: int, exceptions: _Exceptions) -> list[str]:
    node, other = pairing.deploy.node(index), pairing.fake.node(other_index)
    mine, its = strip_trailing(list(node.input)), strip_trailing(list(other.input))
    if index in exceptions.pads and _pads_with_zero(pairing, index):
        mine, its = [*mine[:2], *mine[3:]], [*its[:2], *its[3:]]
    if len(mine) != len(its):
        return [f"node {node.name!r} has {len(mine)} inputs in the deploy twin and {len(its)} in the fake-quant twin"]
    by_content = exceptions.inputs.get(index, frozenset())
    problems: list[str] = []
    for slot, (one, two) in enumerate(zip(mine, its, strict=True)):
        expected = pairing.tensors.get(one, "a tensor that does not exist") if one else ""
        if expected != two and not (slot in by_content and one and two):
            problems.append(
                f"node {node.name!r} reads {one!r} as input {slot} in the deploy twin; in the fake-quant twin it reads "
                f"{two!r}, not {expected!r}"
            )
    return problems


def _pads_with_zero(pairing: Pairing, index: int) -> bool:
    """Tell whether a Pad of quantized values names 0 as its constant; the fake-quant twin may leave that away.

    Its element type would not fit there where the model is not float32.
    """
    node = pairing.deploy.node(index)
    if len(node.input) < 3:
        return False
    constant = pairing.deploy.finder.find(node.input[2])
    return constant is not None and not np.any(pairing.deploy.data(constant).array())


def _add_rnn(pairing: Pairing, rnn: DeployRnn) -> None:
    made, problems = pair_rnn(pairing.deploy, pairing.fake, rnn, pairing.tensors)
    pairing.findings.add_structural(problems, rnn.name)
    if made is not None:
        pairing.rnns[rnn.index] = made
        pairing.counterparts[rnn.index] = made.index
        pairing.known |= made.nodes


def _check_rest(pairing: Pairing) -> None:
    """Note nodes that only the fake-quant twin has, and outputs that come from elsewhere."""
    for index, node in enumerate(pairing.fake.graph.model.graph.node):
        if index not in pairing.known:
            pairing.findings.add(f"only the fake-quant twin has node {node.name!r} ({node.op_type})")
    for value in pairing.deploy.graph.model.graph.output:
        if pairing.tensors.get(value.name) != value.name:
            pairing.findings.add(
                f"output {value.name!r} of the deploy twin comes from elsewhere than the fake-quant twin's"
            )
