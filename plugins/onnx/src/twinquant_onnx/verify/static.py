"""The static step: every weight, bias, scale and constant of the twins, also those that no input would excite."""

from __future__ import annotations

import numpy as np
import onnx

from twinquant.numerics import unpack_dequant_parameter
from twinquant_onnx.constants import FLOAT_TYPES, Constant
from twinquant_onnx.layers import OPERATORS
from twinquant_onnx.topology import MAIN_DOMAINS
from twinquant_onnx.verify.contents import Data, compare_bytes, compare_integers
from twinquant_onnx.verify.correspondence import FakeDequant, Pairing
from twinquant_onnx.verify.deploy_layers import DeployLayer
from twinquant_onnx.verify.rnn_tensors import compare_rnn_tensors
from twinquant_onnx.verify.twin import Twin

__all__ = ["check_contents"]

_PACKED_AXIS = {"Conv": 1, "ConvTranspose": 0, "Gemm": 0, "MatMul": 0}


def check_contents(pairing: Pairing) -> None:
    """Compare the tensors and the interfaces of paired twins; what disagrees is noted in the pairing's findings."""
    findings = pairing.findings
    covered_deploy: set[str] = set()
    covered_fake: set[str] = set()
    for layer in pairing.layers:
        covered_deploy.add(layer.parameter.name)
        findings.add(_check_parameter(pairing, layer), layer.name)
        for what, one, two, axis in _tensors(pairing, layer):
            if one is None and two is None:
                continue
            if one is None or two is None:
                findings.add(f"only one twin has a constant {what}", layer.name)
                continue
            covered_deploy.add(one.name)
            covered_fake.add(two.name)
            findings.add(_check_element_type(what, one), layer.name)
            difference = compare_integers(what, pairing.deploy.data(one), pairing.fake.data(two), axis)
            findings.add(difference, layer.name)
    for index, pair in pairing.rnns.items():
        comparison = compare_rnn_tensors(pairing.deploy, pairing.fake, pair)
        covered_deploy.update(constant.name for constant in comparison.deploy)
        covered_fake.update(constant.name for constant in comparison.fake)
        if comparison.input_scales is not None:
            pairing.input_scales[index] = comparison.input_scales
        for problem in comparison.problems:
            findings.add(problem, pair.rnn.name)
    covered_fake.update(dequant.scale for dequant in pairing.dequants.values())
    _compare_initializers(pairing, covered_deploy, covered_fake)
    findings.add_structural(_compare_interfaces(pairing.deploy.graph.model, pairing.fake.graph.model))


def _tensors(pairing: Pairing, layer: DeployLayer) -> list[tuple[str, Constant | None, Constant | None, int | None]]:
    """List the quantized tensors of a layer: what it is, in either twin, and the axis of packed 4-bit values."""
    index = pairing.counterparts.get(layer.index)
    if index is None:
        return []
    node = pairing.fake.node(index)
    found: list[tuple[str, Constant | None, Constant | None, int | None]] = []
    if layer.weight is not None:
        weight = pairing.fake.finder.find(node.input[1], through_transpose=layer.op_type == "MatMul")
        axis = _PACKED_AXIS[layer.op_type]
        if layer.weight.transposed:
            axis = 1 - axis
        found.append((f"weight {layer.weight.name!r}", layer.weight, weight, axis))
        if weight is not None and weight.transposed != layer.weight.transposed:
            pairing.findings.add("the weight is transposed in one twin only", layer.name)
    bias = _fake_bias(pairing, layer, node)
    found.append((f"bias {layer.bias.name if layer.bias else ''!r}", layer.bias, bias, None))
    return found


def _fake_bias(pairing: Pairing, layer: DeployLayer, node: onnx.NodeProto) -> Constant | None:
    slot = OPERATORS[layer.op_type].bias
    if layer.add is not None:
        add = pairing.counterparts.get(layer.add)
        if add is None:
            return None
        node, slot = pairing.fake.node(add), 1
    if slot is None or len(node.input) <= slot:
        return None
    return pairing.fake.finder.find(node.input[slot])


def _check_element_type(what: str, constant: Constant) -> str | None:
    is_bias = what.startswith("bias")
    wanted = (onnx.TensorProto.INT32,) if is_bias else (onnx.TensorProto.INT8, onnx.TensorProto.INT4)
    if constant.tensor.data_type in wanted:
        return None
    name = onnx.TensorProto.DataType.Name(constant.tensor.data_type)
    return f"{what} is {name} in the deploy twin, expected {'INT32' if is_bias else 'INT8 or INT4'}"


def _check_parameter(pairing: Pairing, layer: DeployLayer) -> str | None:
    """Compare the packed dequantization parameter with the scale that the fake-quant twin multiplies by."""
    dequant: FakeDequant | None = pairing.dequants.get(layer.dequant)
    if dequant is None:
        return None
    constant = pairing.fake.finder.find(dequant.scale)
    if constant is None or constant.tensor.data_type != onnx.TensorProto.FLOAT:
        return f"the fake-quant twin's {dequant.scale!r} is no float32 constant"
    if layer.parameter.tensor.data_type != onnx.TensorProto.UINT64 or len(layer.parameter.tensor.dims) != 1:
        return f"the dequantization parameter {layer.parameter.name!r} is not UINT64 of rank 1"
    values = pairing.deploy.data(layer.parameter).array()
    expected = pairing.fake.data(constant).array().reshape(-1)
    if values.size != expected.size:
        return f"there are {values.size} dequantization parameters, the fake-quant twin has {expected.size} scales"
    if np.any(values >> np.uint64(32)):
        place = int(np.argmax(values >> np.uint64(32) != 0))
        return (
            f"dequantization parameter {place} has bits above the scale: {int(values[place]):#018x}, expected 0 there"
        )
    scale, _, _ = unpack_dequant_parameter(values)
    different = np.flatnonzero(scale.view(np.uint32) != expected.view(np.uint32))
    if not different.size:
        return None
    place = int(different[0])
    return (
        f"{different.size} of {scale.size} dequantization scales differ; at {place} the deploy twin has "
        f"{float(scale[place])!r}, the fake-quant twin {float(expected[place])!r}"
    )


def _compare_initializers(pairing: Pairing, covered_deploy: set[str], covered_fake: set[str]) -> None:
    """Compare all tensors that belong to no quantized layer."""
    findings = pairing.findings
    mains = [twin.graph.model.graph for twin in (pairing.deploy, pairing.fake)]
    one, two = ({tensor.name: tensor for tensor in main.initializer} for main in mains)
    in_chains = {name for chain in pairing.chains.values() for name in _inputs(pairing.fake, chain.nodes)}
    for name in one:
        if name not in two and name not in covered_deploy:
            findings.add(f"only the deploy twin has tensor {name!r}")
    for name in two:
        if name not in one and name not in covered_fake and name not in in_chains:
            findings.add(f"only the fake-quant twin has tensor {name!r}")
    for name in one.keys() & two.keys():
        if not (name in covered_deploy and name in covered_fake):
            _compare_tensor(pairing, f"tensor {name!r}", one[name], two[name])
    sparse = [{tensor.values.name: tensor for tensor in main.sparse_initializer} for main in mains]
    findings.add_structural(f"only one twin has sparse tensor {name!r}" for name in sparse[0].keys() ^ sparse[1].keys())
    for name in sparse[0].keys() & sparse[1].keys():
        for part in ("values", "indices"):
            left, right = (getattr(tensors[name], part) for tensors in sparse)
            _compare_tensor(pairing, f"sparse tensor {name!r} ({part})", left, right)


def _compare_tensor(pairing: Pairing, what: str, deploy: onnx.TensorProto, fake: onnx.TensorProto) -> None:
    """Compare two tensors bit for bit; integers may be lengths, so that a difference is one of structure."""
    difference = compare_bytes(what, _data(pairing.deploy, deploy), _data(pairing.fake, fake))
    if difference and deploy.data_type in FLOAT_TYPES and deploy.dims == fake.dims:
        pairing.findings.add(difference)
    elif difference:
        pairing.findings.add_structural([difference])


def _inputs(twin: Twin, nodes: frozenset[int]) -> set[str]:
    return {name for index in nodes for name in twin.node(index).input}


def _data(twin: Twin, tensor: onnx.TensorProto) -> Data:
    return Data(tensor, twin.graph.store)


def _compare_interfaces(deploy: onnx.ModelProto, fake: onnx.ModelProto) -> list[str]:
    """Compare graph inputs and outputs, operator sets and functions."""
    problems: list[str] = []
    for kind in ("input", "output"):
        one, two = (list(getattr(model.graph, kind)) for model in (deploy, fake))
        if [value.name for value in one] != [value.name for value in two]:
            problems.append(
                f"the {kind}s are {[v.name for v in one]} in the deploy twin, {[v.name for v in two]} in the other"
            )
            continue
        for left, right in zip(one, two, strict=True):
            if left.type.SerializeToString(deterministic=True) != right.type.SerializeToString(deterministic=True):
                problems.append(f"{kind} {left.name!r} is declared with another type or shape in the fake-quant twin")
    opsets = [{"" if o.domain in MAIN_DOMAINS else o.domain: o.version for o in m.opset_import} for m in (deploy, fake)]
    converted = opsets[0].get("", 0) < 11 and opsets[1].get("") == 11
    for domain in opsets[0].keys() | opsets[1].keys():
        versions = [opset.get(domain) for opset in opsets]
        if versions[0] != versions[1] and not (domain == "" and converted):
            problems.append(
                f"operator set {domain or 'ai.onnx'!r}: version {versions[0]} and {versions[1]} in the twins"
            )
    functions = [sorted(f.SerializeToString(deterministic=True) for f in model.functions) for model in (deploy, fake)]
    if functions[0] != functions[1]:
        problems.append("the twins' model-local functions differ")
    return problems
