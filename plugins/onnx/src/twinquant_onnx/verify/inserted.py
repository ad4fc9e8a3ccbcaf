"""Matching the operators that only the deploy twin has with what stands for them in the fake-quant twin."""

from __future__ import annotations

import re

import numpy as np
import onnx

from twinquant.numerics import integer_range
from twinquant_onnx.operators import ACTIVATION_BITS
from twinquant_onnx.verify.chains import read_chain
from twinquant_onnx.verify.correspondence import FakeDequant, Pairing

__all__ = ["INSERTED", "check_bias_casts"]


def _attributes(node: onnx.NodeProto) -> dict[str, onnx.AttributeProto]:
    return {attribute.name: attribute for attribute in node.attribute}


def _shape_problem(node: onnx.NodeProto, inputs: int) -> str | None:
    if len(node.input) == inputs and len(node.output) == 1:
        return None
    given = f"{len(node.input)} inputs and {len(node.output)} outputs"
    return f"{node.op_type} {node.name!r} has {given}, expected {inputs} and 1"


def _source_problem(pairing: Pairing, node: onnx.NodeProto, expected: str) -> list[str]:
    if pairing.tensors.get(node.input[0]) == expected:
        return []
    return [f"{node.op_type} {node.name!r} reads {node.input[0]!r}, its counterpart reads {expected!r}"]


def _pair_quant(pairing: Pairing, index: int) -> list[str]:
    node = pairing.deploy.node(index)
    what = f"AscendQuant {node.name!r}"
    wrong = _shape_problem(node, 1)
    if wrong:
        return [wrong]
    first = pairing.find_inserted(f"{node.name}.fakequant.mul")
    if first is None:
        return [f"{what} has no counterpart: the fake-quant twin has no node {node.name + '.fakequant.mul'!r}"]
    chain = read_chain(pairing.fake, first)
    if isinstance(chain, str):
        return [f"{what}: in the fake-quant twin, {chain}"]
    pairing.chains[index] = chain
    pairing.known |= chain.nodes
    pairing.tensors[node.output[0]] = chain.output
    problems = _source_problem(pairing, node, chain.source)
    if index not in pairing.findings.owners:
        problems.append(f"{what} quantizes for no layer")
    given = _attributes(node)
    if given.keys() != {"scale", "offset", "dst_type"}:
        return [*problems, f"{what} has attributes {sorted(given)}, expected dst_type, offset and scale"]
    owner = pairing.findings.owners.get(index)
    if np.float32(given["scale"].f) != chain.scale:
        text = f"{what}: scale is {given['scale'].f!r}, in the fake-quant twin {float(chain.scale)!r}"
        pairing.findings.add(text, owner)
    if given["offset"].f != chain.offset:
        text = f"{what}: offset is {given['offset'].f!r}, in the fake-quant twin {chain.offset!r}"
        pairing.findings.add(text, owner)
    bits = ACTIVATION_BITS.get(given["dst_type"].s)
    if bits is None or integer_range(bits) != (chain.low, chain.high):
        kind = given["dst_type"].s.decode(errors="replace")
        text = f"{what}: dst_type is {kind!r}, the fake-quant twin clips to [{chain.low:g}, {chain.high:g}]"
        pairing.findings.add(text, owner)
    return problems


def _pair_dequant(pairing: Pairing, index: int) -> list[str]:
    node = pairing.deploy.node(index)
    what = f"AscendDequant {node.name!r}"
    wrong = _shape_problem(node, 2)
    if wrong:
        return [wrong]
    base = re.sub(r"\.dequant(_\d+)?$", "", node.name)
    mul_index = pairing.find_inserted(f"{base}.fakedequant.mul")
    if mul_index is None:
        return [f"{what} has no counterpart: the fake-quant twin has no node {base + '.fakedequant.mul'!r}"]
    mul = pairing.take(mul_index)
    if mul.op_type != "Mul" or len(mul.input) != 2:
        return [f"{what}: {mul.name!r} in the fake-quant twin is no Mul of two tensors"]
    pairing.dequants[index] = FakeDequant(mul.input[1], mul.output[0])
    pairing.tensors[node.output[0]] = mul.output[0]
    problems = _source_problem(pairing, node, mul.input[0])
    owner = pairing.findings.owners.get(index)
    if owner is not None and owner != base:
        problems.append(f"{what} stands behind layer {owner!r}")
    given = _attributes(node)
    if given.keys() != {"dtype"}:
        return [*problems, f"{what} has attributes {sorted(given)}, expected dtype"]
    expected = int(_takes_over_cast(pairing, node, mul.output[0], base))
    if given["dtype"].i != expected or given["dtype"].type != onnx.AttributeProto.INT:
        problems.append(f"{what}: dtype is {given['dtype'].i}, expected {expected} from what the fake-quant twin does")
    return problems


def _takes_over_cast(pairing: Pairing, node: onnx.NodeProto, product: str, base: str) -> bool:
    """Let an AscendDequant stand for the fake-quant twin's Cast to float16 as well; tell whether there is one."""
    index = pairing.find_inserted(f"{base}.fakedequant.cast")
    if index is None:
        return False
    cast = pairing.fake.node(index)
    if list(cast.input) != [product] or _attributes(cast)["to"].i != onnx.TensorProto.FLOAT16:
        return False
    pairing.take(index)
    pairing.tensors[node.output[0]] = cast.output[0]
    return True


def _pair_anti_quant(pairing: Pairing, index: int) -> list[str]:
    node = pairing.deploy.node(index)
    what = f"AscendAntiQuant {node.name!r}"
    wrong = _shape_problem(node, 1)
    if wrong:
        return [wrong]
    mul_index = pairing.find_inserted(f"{node.name}.fake_antiquant.mul")
    if mul_index is None:
        return [f"{what} has no counterpart: the fake-quant twin has no node {node.name + '.fake_antiquant.mul'!r}"]
    mul = pairing.take(mul_index)
    pairing.tensors[node.output[0]] = mul.output[0]
    problems = _source_problem(pairing, node, mul.input[0])
    given, scale = _attributes(node), pairing.fake.scalar(mul.input[1])
    if given.keys() != {"scale", "offset", "dst_type"}:
        return [*problems, f"{what} has attributes {sorted(given)}, expected dst_type, offset and scale"]
    if scale is None or np.float32(given["scale"].f) != scale:
        problems.append(f"{what}: scale is {given['scale'].f!r}, in the fake-quant twin {scale}")
    maker = pairing.deploy.producer(node.input[0])
    quant = _attributes(pairing.deploy.node(maker)) if maker is not None else {}
    for name, field in (("offset", "f"), ("dst_type", "s")):
        if name not in quant or getattr(quant[name], field) != getattr(given[name], field):
            problems.append(f"{what}: {name} is not that of the AscendQuant it undoes")
    return problems


INSERTED = {"AscendQuant": _pair_quant, "AscendDequant": _pair_dequant, "AscendAntiQuant": _pair_anti_quant}
"""How each of these operators of the deploy twin is matched: notes what it finds, returns what disagrees."""


def check_bias_casts(pairing: Pairing) -> dict[int, str]:
    """Match the Casts, in the deploy twin only, through which layers with 4-bit activations read their integer bias.

    Returns:
        the layer's name by the Cast's position.
    """
    found: dict[int, str] = {}
    for layer in pairing.layers:
        quant = _attributes(pairing.deploy.node(layer.quant))
        needed = layer.bias is not None and "dst_type" in quant and quant["dst_type"].s == b"INT4"
        if needed != (layer.bias_cast is not None):
            text = "is missing: 4-bit activations need it" if needed else "is there without 4-bit activations"
            pairing.findings.add_structural([f"the Cast of the bias to float {text}"], layer.name)
        if layer.bias_cast is None:
            continue
        cast = pairing.deploy.node(layer.bias_cast)
        if re.fullmatch(re.escape(layer.name) + r"\.bias_quant(_\d+)?", cast.name):
            found[layer.bias_cast] = layer.name
            if [(a.name, a.i) for a in cast.attribute] != [("to", onnx.TensorProto.FLOAT)]:
                pairing.findings.add_structural([f"Cast {cast.name!r} does not cast to FLOAT"], layer.name)
    return found
