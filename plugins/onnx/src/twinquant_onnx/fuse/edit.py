"""Folding the chains that were found: a new graph with fewer nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from twinquant_onnx.constants import FLOAT_TYPES, raw_bytes
from twinquant_onnx.fuse.chains import Chain
from twinquant_onnx.fuse.weight import FusedWeight
from twinquant_onnx.graph import OnnxGraph, TensorStore
from twinquant_onnx.topology import (
    Reader,
    Topology,
    captured_names,
    declare_initializers,
    defined_names,
)
from twinquant_onnx.traversal import graphs_in

__all__ = ["fold_chains"]


def fold_chains(graph: OnnxGraph, topology: Topology, chains: Iterable[Chain]) -> OnnxGraph:
    """Return a graph in which every chain is one node. Nodes without a name get the one that the topology gave them."""
    edit = _Edit(graph, topology)
    for chain in chains:
        edit.fold(chain)
    return edit.finish()


class _Edit:
    """Collects the edits of one graph."""

    def __init__(self, graph: OnnxGraph, topology: Topology) -> None:
        self._topology = topology
        # Not its memory of integers: that goes by name, and fused weights keep their names.
        self._store = TensorStore(list(graph.store.entries))
        self._source = graph
        self._model = onnx.ModelProto()
        self._model.CopyFrom(graph.model)
        self._nodes: list[onnx.NodeProto] = list(self._model.graph.node)
        for node, name in zip(self._nodes, topology.names, strict=True):
            node.name = name
        self._initializers = {tensor.name: tensor for tensor in self._model.graph.initializer}
        self._gone_nodes: set[int] = set()
        self._gone_tensors: set[str] = set()
        self._unread: list[str] = []
        self._added: list[onnx.TensorProto] = []
        self._taken = set().union(*map(defined_names, graphs_in(self._model.graph)))

    def fold(self, chain: Chain) -> None:
        """Fold one chain: the layer gets its weight and bias and the last node's output."""
        layer = self._nodes[chain.layer]
        if chain.scale is not None:
            self._set_weight(layer, chain, chain.scale)
        self._set_bias(layer, chain)
        for index in chain.folded:
            node = self._nodes[index]
            self._gone_nodes.add(index)
            self._gone_tensors.add(layer.output[0])
            self._gone_tensors.update(node.output[1:])
            self._unread += [tensor for tensor in node.input if tensor != layer.output[0]]
            layer.output[0] = node.output[0]

    def _set_weight(self, layer: onnx.NodeProto, chain: Chain, scale: npt.NDArray[np.float64]) -> None:
        constant = chain.weight
        stored = self._store.get(constant.tensor)
        fused = FusedWeight(
            raw_bytes(constant.tensor, self._store),
            FLOAT_TYPES[constant.tensor.data_type],
            constant.shape,
            scale,
            transposed=chain.transposed,
            group=chain.group,
            label=f"layer {layer.name!r}: the weight {constant.name!r}",
        )
        target = self._tensor_of(layer, 1, chain, f"{constant.name}.{layer.name}")
        target.data_type = constant.tensor.data_type
        del target.dims[:]
        target.dims.extend(constant.shape)
        self._store.attach(target, fused, external=stored is not None and stored.external)

    def _set_bias(self, layer: onnx.NodeProto, chain: Chain) -> None:
        target = self._tensor_of(layer, 2, chain, f"{layer.name}.bias")
        kept = target.name
        target.Clear()
        target.name = kept
        target.data_type = helper.np_dtype_to_tensor_dtype(chain.bias.dtype)
        target.dims.extend(chain.bias.shape)
        target.raw_data = chain.bias.astype(chain.bias.dtype.newbyteorder("<")).tobytes()

    def _tensor_of(self, layer: onnx.NodeProto, slot: int, chain: Chain, new_name: str) -> onnx.TensorProto:
        """Return the initializer that a layer reads, if nobody else does; else make it read a new one."""
        current = layer.input[slot] if len(layer.input) > slot else ""
        if current in self._initializers and self._topology.sole_reader(current) == Reader(chain.layer, slot):
            own: onnx.TensorProto = self._initializers[current]
            return own
        if current:
            self._unread.append(current)
        name, attempt = new_name, 0
        while name in self._taken:
            attempt += 1
            name = f"{new_name}_{attempt}"
        self._taken.add(name)
        while len(layer.input) <= slot:
            layer.input.append("")
        layer.input[slot] = name
        self._added.append(self._model.graph.initializer.add(name=name))
        return self._added[-1]

    def finish(self) -> OnnxGraph:
        """Drop what nobody reads any more, and return the graph."""
        graph = self._model.graph
        self._drop_unread()
        declare_initializers(self._model, self._added)
        rebuilt = onnx.GraphProto(
            node=[node for index, node in enumerate(self._nodes) if index not in self._gone_nodes],
            initializer=[tensor for tensor in graph.initializer if tensor.name not in self._gone_tensors],
            input=[value for value in graph.input if value.name not in self._gone_tensors],
            value_info=[value for value in graph.value_info if value.name not in self._gone_tensors],
        )
        for field in ("node", "initializer", "input", "value_info"):
            graph.ClearField(field)
        graph.MergeFrom(rebuilt)
        return replace(self._source, model=self._model, store=self._store)

    def _drop_unread(self) -> None:
        """Drop the constants that only folded nodes read, with the nodes between them and their readers."""
        reads = Counter(value.name for value in self._model.graph.output)
        for index, node in enumerate(self._nodes):
            if index not in self._gone_nodes:
                reads.update(node.input)
                reads.update(captured_names(node))
        pending = self._unread
        while pending:
            tensor = pending.pop()
            if reads[tensor] or tensor in self._gone_tensors:
                continue
            self._gone_tensors.add(tensor)
            maker = self._topology.producer.get(tensor)
            if maker is not None:
                self._gone_nodes.add(maker)
                reads.subtract(self._nodes[maker].input)
                pending.extend(self._nodes[maker].input)
