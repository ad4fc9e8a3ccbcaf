"""Finding the layers into which the nodes behind them can be folded."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from twinquant.numerics.channel_factors import ChannelFactors
from twinquant_onnx.constants import FLOAT_TYPES, Constant, ConstantFinder, type_name
from twinquant_onnx.fuse.factors import FactorReader, read_float64
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.topology import MAIN_DOMAINS, Topology

__all__ = ["Chain", "find_chains"]

_logger = logging.getLogger(__name__)

_LAYERS = ("Conv", "ConvTranspose")
_FUSED_TYPES = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE)


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """A layer, and the nodes behind it that are folded into it.

    Attributes:
        layer: position of the layer's node.
        folded: positions of the nodes that are folded, in order.
        weight: the layer's weight.
        transposed: the layer is a ConvTranspose.
        group: its number of groups.
        scale: float64 `(Cout,)`: what the weight is multiplied by; None: the weight stays as it is.
        bias: `(Cout,)`, of the weight's element type: the fused bias.
    """

    layer: int
    folded: tuple[int, ...]
    weight: Constant
    transposed: bool
    group: int
    scale: npt.NDArray[np.float64] | None
    bias: npt.NDArray[np.floating]


def find_chains(graph: OnnxGraph, topology: Topology, skip: Collection[str]) -> list[Chain]:
    """Find what can be folded.

    Args:
        graph: the model.
        topology: the wiring of its main graph.
        skip: names of the layers into which nothing is folded.

    Returns:
        The chains in graph order; no node is part of two.
    """
    main = graph.model.graph
    finder = ConstantFinder(main, topology)
    search = _Search(graph, topology, finder, FactorReader(main, graph.store, topology, finder))
    chains = []
    for index, node in enumerate(main.node):
        if node.op_type in _LAYERS and node.domain in MAIN_DOMAINS:
            found = search.chain(index, skipped=topology.names[index] in skip)
            if isinstance(found, Chain):
                chains.append(found)
            elif found is not None:
                _logger.info("layer %r: nothing is folded into it: %s", topology.names[index], found)
    return chains


@dataclass(frozen=True, slots=True)
class _Search:
    graph: OnnxGraph
    topology: Topology
    finder: ConstantFinder
    factors: FactorReader

    def chain(self, index: int, *, skipped: bool) -> Chain | str | None:
        """Return what can be folded into a layer; or why nothing can be; or None if nothing is there to be folded."""
        node = self.graph.model.graph.node[index]
        weight = self.finder.find(node.input[1]) if len(node.input) > 1 else None
        if weight is None:
            return "its weight is not constant" if self._normalized(node) else None
        if len(weight.shape) < 3 or 0 in weight.shape:
            return None
        transposed = node.op_type == "ConvTranspose"
        group = next((int(attribute.i) for attribute in node.attribute if attribute.name == "group"), 1)
        channels = weight.shape[1] * group if transposed else weight.shape[0]
        folded, factors = self._follow(node, channels, len(weight.shape))
        if not folded:
            return None
        if skipped:
            return "it is skipped as configured"
        if weight.tensor.data_type not in _FUSED_TYPES:
            return f"its weight is {type_name(weight.tensor.data_type)}"
        bias = self._fused_bias(node, factors, np.dtype(FLOAT_TYPES[weight.tensor.data_type]))
        if isinstance(bias, str):
            return bias
        scale = None if np.array_equal(factors.scale, np.ones(channels)) else factors.scale
        return Chain(index, tuple(folded), weight, transposed, group, scale, bias)

    def _normalized(self, node: onnx.NodeProto) -> bool:
        """Tell whether a BatchNormalization reads a layer's output."""
        nodes = self.graph.model.graph.node
        readers = self.topology.readers.get(node.output[0], ())
        return any(nodes[reader.node].op_type == "BatchNormalization" for reader in readers)

    def _follow(self, node: onnx.NodeProto, channels: int, rank: int) -> tuple[list[int], ChannelFactors]:
        """Follow a layer's output as far as one node after the other can be folded."""
        folded: list[int] = []
        factors = ChannelFactors.identity(channels)
        while True:
            reader = self.topology.sole_reader(node.output[0])
            if reader is None:
                if self._normalized(node):
                    self._explain(node.output[0], "the BatchNormalization behind it is not its only reader")
                break
            step = self.factors.read(reader, channels, rank)
            if not isinstance(step, ChannelFactors):
                if step is not None:
                    self._explain(node.output[0], f"{self.topology.names[reader.node]!r} cannot be folded: {step}")
                break
            together = factors.then(step)
            if not together.finite:
                self._explain(node.output[0], f"with {self.topology.names[reader.node]!r} its factors are not finite")
                break
            factors = together
            folded.append(reader.node)
            node = self.graph.model.graph.node[reader.node]
        return folded, factors

    def _explain(self, tensor: str, why: str) -> None:
        _logger.info("tensor %r: nothing behind it is folded: %s", tensor, why)

    def _fused_bias(
        self, node: onnx.NodeProto, factors: ChannelFactors, dtype: np.dtype[np.floating]
    ) -> npt.NDArray[np.floating] | str:
        """Return the bias of the fused layer, or why it has none."""
        values = np.zeros(factors.shift.shape)
        if len(node.input) > 2 and node.input[2]:
            constant = self.finder.find(node.input[2])
            if constant is None:
                return "its bias is not constant"
            if constant.tensor.data_type not in FLOAT_TYPES or constant.shape != values.shape:
                return f"its bias {constant.name!r} is not one float per output channel"
            values = read_float64(constant, self.graph.store)
        with np.errstate(over="ignore"):
            bias = (values * factors.scale + factors.shift).astype(dtype)
        if not np.isfinite(bias).all():
            return f"its fused bias does not fit into {dtype.name}"
        return bias
