"""One twin, with everything looked up that the comparison asks for again and again."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import onnx

from twinquant_onnx.constants import Constant, ConstantFinder
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.topology import Topology, read_topology
from twinquant_onnx.verify.contents import Data

__all__ = ["Twin", "read_twin", "without_suffix"]


@dataclass(frozen=True, slots=True, eq=False)
class Twin:
    """A loaded twin.

    Attributes:
        graph: the model.
        topology: its wiring.
        finder: its constants.
        by_name: position of every named node.
    """

    graph: OnnxGraph
    topology: Topology
    finder: ConstantFinder
    by_name: dict[str, int]

    def node(self, index: int) -> onnx.NodeProto:
        """Return the node at a position."""
        node: onnx.NodeProto = self.graph.model.graph.node[index]
        return node

    def producer(self, tensor: str) -> int | None:
        """Return the position of the node that makes a tensor; None for graph inputs and initializers."""
        return self.topology.producer.get(tensor)

    def data(self, constant: Constant) -> Data:
        """Return a constant's content."""
        return Data(constant.tensor, self.graph.store)

    def scalar(self, tensor: str) -> np.float32 | None:
        """Return the value of a constant float32 scalar, or None if the tensor is something else."""
        constant = self.finder.find(tensor)
        if constant is None or constant.tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        values = self.data(constant).array()
        return np.float32(values.reshape(-1)[0]) if values.size == 1 else None


def read_twin(graph: OnnxGraph) -> Twin:
    """Look a twin's wiring and constants up."""
    main = graph.model.graph
    topology = read_topology(main)
    by_name: dict[str, int] = {}
    for index, node in enumerate(main.node):
        by_name.setdefault(node.name, index)
    return Twin(graph, topology, ConstantFinder(main, topology), by_name)


def without_suffix(name: str) -> str:
    """Drop the numeric suffix that an inserted node's name gets where the name was taken."""
    return re.sub(r"_\d+$", "", name)
