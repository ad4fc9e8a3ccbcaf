"""Calling the layers of an exported graph by the paths of their modules."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from twinquant_onnx.layers import OPERATORS
from twinquant_onnx.topology import MAIN_DOMAINS
from twinquant_onnx.traversal import graphs_in

__all__ = ["NamedLayers", "name_layers"]

_MODULES = {
    "Conv": ("Conv1d", "Conv2d", "Conv3d"),
    "ConvTranspose": ("ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
    "Gemm": ("Linear",),
    "MatMul": ("Linear",),
    "AveragePool": ("AvgPool1d", "AvgPool2d", "AvgPool3d"),
    "LSTM": ("LSTM",),
    "GRU": ("GRU",),
}
"""The classes of `torch.nn` whose modules become one node of an operator."""

_OUTPUTS = {"LSTM": ("Y", "Y_h", "Y_c"), "GRU": ("Y", "Y_h")}
"""The outputs of recurrent operators. Exporters leave out those that nobody reads, the device's operators have all."""

_SCOPES = "pkg.torch.onnx.name_scopes"
_CLASSES = "pkg.torch.onnx.class_hierarchy"


@dataclass(frozen=True, slots=True)
class NamedLayers:
    """What the names of a graph's layers mean.

    Attributes:
        modules: layers that are one call of one module, and its path: the layer's name, or "" for the whole model.
        refusals: layers that are not quantized, and why, as the end of a sentence.
    """

    modules: Mapping[str, str]
    refusals: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Scope:
    """Where in the module a node comes from.

    Attributes:
        path: the module's path.
        classes: names of the module's class and of those it is derived from.
        call: tells the calls of one module from each other.
        label: what happens in it.
        rivals: the paths of all modules that it may be; none: it is clear which one.
    """

    path: str
    classes: frozenset[str]
    call: str
    label: str
    rivals: tuple[str, ...] = ()


def name_layers(model: onnx.ModelProto, module: Any, calls: Mapping[str, int] | None = None) -> NamedLayers:
    """Give every quantizable node the path of its module, and every node a unique name. Edits `model`.

    What the exporters say about the source of nodes and tensors is removed: it holds paths of this machine.

    Args:
        model: a freshly exported model.
        module: what was exported; None: an exported program.
        calls: how often one forward pass calls each module, by the first of its paths; None: nobody knows.
    """
    main = model.graph
    shared = _shared_paths(module)
    makers = {tensor: node for node in main.node for tensor in node.output}
    readings = _Readings(module, shared, calls)
    scopes = [_scope(node, module, readings, makers) for node in main.node]
    by_path: dict[str, list[int]] = defaultdict(list)
    of_modules: dict[int, str] = {}
    functional: dict[int, str] = {}
    refusals: dict[int, str] = {}
    uncalled: set[int] = set()
    for index, (node, scope) in enumerate(zip(main.node, scopes, strict=True)):
        if node.op_type not in OPERATORS or node.domain not in MAIN_DOMAINS or scope is None:
            continue
        if scope.classes.intersection(_MODULES[node.op_type]):
            by_path[shared.get(scope.path, scope.path)].append(index)
            of_modules[index] = scope.path or scope.label
            if scope.rivals:
                refusals[index] = _unclear(scope.rivals)
            if calls is not None and not calls.get(shared.get(scope.path, scope.path)):
                uncalled.add(index)  # somebody calls its forward, which no hook sees
        elif owner := _owner(makers, node, module):
            by_path[shared.get(owner, owner)].append(index)
            of_modules[index] = owner
            uncalled.add(index)
        else:
            # The exporters count operators of the whole model; a name shall only depend on what is around it.
            label = re.sub(r"_\d+$", "", scope.label)
            functional[index] = f"{scope.path}.{label}" if scope.path else label
    for path, indices in by_path.items():
        found = {scopes[index].call for index in indices}  # type: ignore[union-attr]  # those of layers are there
        count = len(found) if calls is None else calls.get(path, 0)
        for position, index in enumerate(indices if max(len(indices), count) > 1 else ()):
            refusals.setdefault(index, _several(len(indices), count, main.node[index].op_type))
            of_modules[index] = of_modules[index] if position == 0 else f"{of_modules[index]}:{position}"
    wanted = {**of_modules, **functional}
    _set_names(main, wanted)
    for index, node in enumerate(main.node):
        _complete(main, index, node, is_module=index in wanted)
    _drop_sources(model)
    path_of = {index: scope.path for index, scope in enumerate(scopes) if scope is not None}
    single = {indices[0] for indices in by_path.values() if len(indices) == 1} - uncalled
    return NamedLayers(
        {main.node[index].name: path_of[index] for index in single},
        {main.node[index].name: reason for index, reason in refusals.items()},
    )


def _owner(makers: Mapping[str, onnx.NodeProto], node: onnx.NodeProto, module: Any) -> str:
    """Return the path of the module whose weight a functional layer uses, or "": its forward is not called then."""
    slot = OPERATORS[node.op_type].weight
    if slot is None or len(node.input) <= slot:
        return ""
    weight = node.input[slot]
    maker = makers.get(weight)
    if maker is not None and maker.op_type == "Transpose":
        weight = maker.input[0]
    path = weight.removesuffix(".weight")
    return path if path != weight and _classes(module, path).intersection(_MODULES[node.op_type]) else ""


def _several(nodes: int, calls: int, op_type: str) -> str:
    if calls < nodes and op_type in _OUTPUTS:
        return f"its module has {nodes} layers; only those of one layer are supported: make a module for each"
    if calls == 1:
        return (
            f"its module computes {nodes} such layers in one call, and a record has one set of factors for it; make a "
            "module for each layer"
        )
    return (
        f"its module is used {max(nodes, calls)} times in one forward pass, and a record has one set of factors for "
        "it; make a module for each use"
    )


def _unclear(rivals: Sequence[str]) -> str:
    return (
        f"the exporter of this torch gives modules and repeated calls the same names, so that it may belong to "
        f"{' or to '.join(map(repr, rivals))}; rename one of the two modules, or use torch 2.6 or newer"
    )


def _shared_paths(module: Any) -> dict[str, str]:
    """Return the first path of every module that has several, by its other paths."""
    if module is None:
        return {}
    first: dict[int, str] = {}
    shared = {}
    for path, inner in module.named_modules(remove_duplicate=False):
        shared[path] = first.setdefault(id(inner), path)
    return shared


def _scope(
    node: onnx.NodeProto, module: Any, readings: _Readings, makers: Mapping[str, onnx.NodeProto]
) -> _Scope | None:
    properties = {entry.key: entry.value for entry in node.metadata_props}
    if _SCOPES in properties:
        *paths, call = ast.literal_eval(properties[_SCOPES])
        classes = ast.literal_eval(properties.get(_CLASSES, "[]"))
        path = paths[-1] if paths else ""
        named = classes[-2].rpartition(".")[2] if len(classes) > 1 else ""
        return _Scope(path, _classes(module, path) or frozenset({named}), call, call)
    if node.name.startswith("/"):
        call, _, label = node.name.rpartition("/")
        path, *others = readings.of(call)
        if others and node.op_type in OPERATORS and (owner := _owner(makers, node, module)) in (path, *others):
            path, others = owner, []
        rivals = (path, *others) if others else ()
        return _Scope(path, _classes(module, path), call, label, rivals)
    return None


class _Readings:
    """What the scopes of the older exporter may mean.

    It calls `/layer1/layer1.0/conv1` a module in a container, and puts `_1` behind the name of a module that is called
    again, whether another module has this name or not.

    Args:
        module: what was exported.
        shared: see `_shared_paths`.
        calls: see `name_layers`.
    """

    def __init__(self, module: Any, shared: Mapping[str, str], calls: Mapping[str, int] | None) -> None:
        self._known = set() if module is None else {path for path, _ in module.named_modules(remove_duplicate=False)}
        self._shared, self._calls = shared, calls
        self._found: dict[str, list[str]] = {}

    def of(self, scope: str) -> list[str]:
        """Return the paths of the modules that a scope may mean; the likeliest first, at least one."""
        if scope not in self._found:
            found = [("", "")]
            for part in scope.strip("/").split("/") if scope else ():
                found = [longer for path, last in found for longer in self._longer(path, last, part)]
            self._found[scope] = list(dict.fromkeys(path for path, _ in found))
        return self._found[scope]

    def _longer(self, path: str, last: str, part: str) -> list[tuple[str, str]]:
        parent = path.removesuffix(last).removesuffix(".") if last and part.startswith(f"{last}.") else path
        own = f"{parent}.{part}" if parent else part
        first = re.sub(r"_\d+$", "", own)
        possible = []
        if own in self._known and self._count(own, 1) >= 1:
            possible.append((own, part))
        if first != own and self._count(first, 2) >= 2 and (first in self._known or not possible):
            possible.append((first, re.sub(r"_\d+$", "", part)))
        return possible or [(own, part) if own in self._known else (first, re.sub(r"_\d+$", "", part))]

    def _count(self, path: str, unknown: int) -> int:
        return unknown if self._calls is None else self._calls.get(self._shared.get(path, path), 0)


def _classes(module: Any, path: str) -> frozenset[str]:
    if module is None:
        return frozenset()
    try:
        inner = module.get_submodule(path)
    except AttributeError:
        return frozenset()
    return frozenset(base.__name__ for base in type(inner).__mro__ if base.__module__.partition(".")[0] == "torch")


def _set_names(main: onnx.GraphProto, wanted: dict[int, str]) -> None:
    """Name the nodes, the wanted names first. Edits `main`."""
    taken: set[str] = set()

    def unique(name: str) -> str:
        candidate, number = name, 0
        while candidate in taken:
            number += 1
            candidate = f"{name}_{number}"
        taken.add(candidate)
        return candidate

    for index, name in wanted.items():
        main.node[index].name = unique(name)
    for index, node in enumerate(main.node):
        if index not in wanted:
            node.name = unique(node.name or f"node_{index}")


def _complete(main: onnx.GraphProto, index: int, node: onnx.NodeProto, *, is_module: bool) -> None:
    """Give a layer's node, and those around it, the form that the writer of twins looks for. Edits `node`, `main`."""
    outputs = _OUTPUTS.get(node.op_type, ()) if is_module else ()
    for slot, name in enumerate(outputs):
        if slot == len(node.output):
            node.output.append("")
        if not node.output[slot]:
            node.output[slot] = f"{node.name}.{name}"
    if node.op_type == "AveragePool" and is_module:
        for pad in main.node[:index]:
            if pad.op_type == "Pad" and pad.output[0] == node.input[0]:
                pad.name = f"{node.name}_pad"
    if node.op_type == "Add" and index and main.node[index - 1].op_type == "MatMul":
        # The older exporter adds the product to the bias.
        product = main.node[index - 1].output[0]
        if node.input[1] == product and node.input[0] != product:
            node.input[0], node.input[1] = node.input[1], node.input[0]


def _drop_sources(model: onnx.ModelProto) -> None:
    """Remove properties and texts that tell where in the user's files something comes from. Edits `model`."""
    messages: list[Any] = [model]
    for graph in graphs_in(model.graph):
        messages += [graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info]
    for message in messages:
        message.ClearField("metadata_props")
        message.ClearField("doc_string")
