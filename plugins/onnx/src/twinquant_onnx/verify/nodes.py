"""Comparing nodes that both twins have: operator, attributes, subgraphs."""

from __future__ import annotations

from collections.abc import Mapping

import onnx

from twinquant_onnx.graph import TensorStore
from twinquant_onnx.topology import MAIN_DOMAINS, defined_names
from twinquant_onnx.verify.contents import Data, compare_bytes

__all__ = ["compare_attributes", "compare_operators", "strip_trailing"]


def compare_operators(deploy: onnx.NodeProto, fake: onnx.NodeProto) -> list[str]:
    """Compare operator type and domain."""
    if deploy.op_type != fake.op_type or not _same_domain(deploy.domain, fake.domain):
        pair = " and ".join(f"{n.domain}.{n.op_type}".lstrip(".") + f" in the {w} twin" for n, w in _both(deploy, fake))
        return [f"node {deploy.name!r} is {pair}"]
    return []


def _both(deploy: onnx.NodeProto, fake: onnx.NodeProto) -> tuple[tuple[onnx.NodeProto, str], ...]:
    return (deploy, "deploy"), (fake, "fake-quant")


def _same_domain(one: str, other: str) -> bool:
    return one == other or (one in MAIN_DOMAINS and other in MAIN_DOMAINS)


def strip_trailing(names: list[str]) -> list[str]:
    """Drop the empty names at the end: they say no more than absent ones."""
    while names and not names[-1]:
        names = names[:-1]
    return names


def compare_attributes(
    deploy: onnx.NodeProto, fake: onnx.NodeProto, stores: tuple[TensorStore, TensorStore], tensors: Mapping[str, str]
) -> list[str]:
    """Compare all attributes bit for bit.

    Args:
        deploy: the deploy twin's node.
        fake: the fake-quant twin's.
        stores: the bytes of both twins' tensors.
        tensors: what the deploy twin's tensors are called in the fake-quant twin; for subgraphs, which read them.
    """
    one, other = ({a.name: a for a in node.attribute} for node in (deploy, fake))
    where = f"node {deploy.name!r}" if deploy.name else f"a {deploy.op_type} node"
    problems = [f"{where}: only the deploy twin has attribute {name!r}" for name in one if name not in other]
    problems += [f"{where}: only the fake-quant twin has attribute {name!r}" for name in other if name not in one]
    for name in one.keys() & other.keys():
        problems += _compare_attribute(f"{where}: attribute {name!r}", one[name], other[name], stores, tensors)
    return problems


def _compare_attribute(
    what: str,
    deploy: onnx.AttributeProto,
    fake: onnx.AttributeProto,
    stores: tuple[TensorStore, TensorStore],
    tensors: Mapping[str, str],
) -> list[str]:
    if deploy.type != fake.type:
        return [f"{what} is of another type in the fake-quant twin"]
    one, other = _plain(deploy), _plain(fake)
    if one != other:
        values = [str(onnx.helper.get_attribute_value(a))[:60] if _is_short(a) else "..." for a in (deploy, fake)]
        return [f"{what} is {values[0]} in the deploy twin and {values[1]} in the fake-quant twin"]
    problems: list[str] = []
    pairs = [*zip(_tensors(deploy), _tensors(fake), strict=True)]
    for left, right in pairs:
        difference = compare_bytes(what, Data(left, stores[0]), Data(right, stores[1]))
        problems += [difference] if difference else []
    for inner, outer in zip(_graphs(deploy), _graphs(fake), strict=True):
        problems += _compare_graphs(what, inner, outer, stores, tensors)
    return problems


def _is_short(attribute: onnx.AttributeProto) -> bool:
    return not _tensors(attribute) and not _graphs(attribute)


def _plain(attribute: onnx.AttributeProto) -> tuple[bytes, int, int]:
    """Serialize an attribute without its tensors and graphs; those are only counted."""
    copy = onnx.AttributeProto()
    copy.CopyFrom(attribute)
    for field in ("doc_string", "t", "tensors", "g", "graphs", "sparse_tensor", "sparse_tensors"):
        copy.ClearField(field)
    return copy.SerializeToString(deterministic=True), len(_tensors(attribute)), len(_graphs(attribute))


def _tensors(attribute: onnx.AttributeProto) -> list[onnx.TensorProto]:
    found = [attribute.t] if attribute.HasField("t") else []
    sparse = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
    for item in (*sparse, *attribute.sparse_tensors):
        found += [item.values, item.indices]
    return [*found, *attribute.tensors]


def _graphs(attribute: onnx.AttributeProto) -> list[onnx.GraphProto]:
    return [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _compare_graphs(
    what: str,
    deploy: onnx.GraphProto,
    fake: onnx.GraphProto,
    stores: tuple[TensorStore, TensorStore],
    tensors: Mapping[str, str],
) -> list[str]:
    """Compare two subgraphs node by node; what they read from outside is translated first."""
    local = defined_names(deploy)
    visible = {old: new for old, new in tensors.items() if old not in local}
    if len(deploy.node) != len(fake.node):
        return [f"{what}: the subgraph has {len(deploy.node)} nodes in the deploy twin, {len(fake.node)} in the other"]
    problems: list[str] = []
    for left, right in zip(deploy.node, fake.node, strict=True):
        problems += [f"{what}: {text}" for text in compare_operators(left, right)]
        reads = [visible.get(name, name) for name in left.input]
        if reads != list(right.input) or list(left.output) != list(right.output):
            problems.append(f"{what}: {left.op_type} node {left.name!r} is wired differently in the subgraphs")
        problems += [f"{what}: {text}" for text in compare_attributes(left, right, stores, visible)]
    for kind in ("input", "output"):
        one, other = getattr(deploy, kind), getattr(fake, kind)
        if [visible.get(value.name, value.name) for value in one] != [value.name for value in other]:
            problems.append(f"{what}: the subgraph's {kind}s have other names in the fake-quant twin")
    one, other = ({t.name: t for t in graph.initializer} for graph in (deploy, fake))
    if one.keys() != other.keys():
        problems.append(f"{what}: the subgraph has other initializers in the fake-quant twin")
    for name in one.keys() & other.keys():
        difference = compare_bytes(f"{what}: tensor {name!r}", Data(one[name], stores[0]), Data(other[name], stores[1]))
        problems += [difference] if difference else []
    return problems
