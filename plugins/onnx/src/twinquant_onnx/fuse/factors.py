"""What a node does to every channel: multiply by a factor and add a summand, both constant."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from twinquant.numerics.channel_factors import NOT_FINITE, ChannelFactors
from twinquant_onnx.constants import Constant, ConstantFinder, is_float, raw_bytes, read_array, type_name
from twinquant_onnx.graph import TensorStore
from twinquant_onnx.topology import MAIN_DOMAINS, Reader, Topology

__all__ = ["FactorReader", "read_float64"]

Float64Array = npt.NDArray[np.float64]

_EPSILON = 1e-5
"""BatchNormalization's epsilon where the attribute is absent."""


@dataclass(frozen=True, slots=True)
class FactorReader:
    """Reads the factors of nodes.

    Attributes:
        graph: the main graph.
        store: its big tensors.
        topology: its wiring.
        finder: its constants.
    """

    graph: onnx.GraphProto
    store: TensorStore
    topology: Topology
    finder: ConstantFinder

    def read(self, reader: Reader, channels: int, rank: int) -> ChannelFactors | str | None:
        """Return what a node does to the channels of the tensor that it reads.

        Args:
            reader: where the tensor is read.
            channels: how many channels the tensor has, on axis 1.
            rank: its rank.

        Returns:
            The factors; or why the node cannot be folded; or None if it is not one that could be.
        """
        node = self.graph.node[reader.node]
        read = _OPERATORS.get(node.op_type) if node.domain in MAIN_DOMAINS else None
        return None if read is None else read(self, node, reader.slot, channels, rank)

    def _batch_normalization(
        self, node: onnx.NodeProto, slot: int, channels: int, _: int
    ) -> ChannelFactors | str | None:
        if slot != 0 or len(node.input) < 5:
            return None
        attributes = {attribute.name: attribute for attribute in node.attribute}
        if "training_mode" in attributes and attributes["training_mode"].i:
            return "it is in training mode"
        if "spatial" in attributes and not attributes["spatial"].i:
            return "it normalizes every position by itself (spatial = 0)"
        used = [name for name in node.output[1:] if name in self.topology.readers or name in self.topology.outputs]
        if used:
            return f"its output {used[0]!r} is read"
        parameters = []
        for name in node.input[1:5]:
            constant = self.finder.find(name)
            if constant is None:
                return f"its input {name!r} is not constant"
            if not is_float(constant.tensor) or constant.shape != (channels,):
                kind = type_name(constant.tensor.data_type)
                return f"its input {name!r} is {kind} of shape {constant.shape}, not one float per channel ({channels})"
            parameters.append(read_float64(constant, self.store))
        gamma, beta, mean, variance = parameters
        epsilon = np.float64(attributes["epsilon"].f if "epsilon" in attributes else _EPSILON)
        with np.errstate(all="ignore"):
            scale = gamma / np.sqrt(variance + epsilon)
            return _finite(ChannelFactors(scale, beta - mean * scale))

    def _multiplication(self, node: onnx.NodeProto, slot: int, channels: int, rank: int) -> ChannelFactors | str | None:
        values = self._per_channel(node, slot, channels, rank)
        return None if values is None else _finite(ChannelFactors(values, np.zeros(channels)))

    def _addition(self, node: onnx.NodeProto, slot: int, channels: int, rank: int) -> ChannelFactors | str | None:
        values = self._per_channel(node, slot, channels, rank)
        return None if values is None else _finite(ChannelFactors(np.ones(channels), values))

    def _per_channel(self, node: onnx.NodeProto, slot: int, channels: int, rank: int) -> Float64Array | None:
        """Return the other operand if it is constant and has one value per channel of the tensor."""
        if node.attribute:
            # Before operator set 7, `broadcast` and `axis` say how shapes are aligned.
            return None
        constant = self.finder.find(node.input[1 - slot])
        if constant is None or not is_float(constant.tensor) or len(constant.shape) > rank:
            return None
        aligned = (1,) * (rank - len(constant.shape)) + constant.shape
        return read_float64(constant, self.store) if aligned == (1, channels) + (1,) * (rank - 2) else None


def read_float64(constant: Constant, store: TensorStore) -> Float64Array:
    """Read a small float tensor: float64, flat."""
    if constant.tensor.data_type != onnx.TensorProto.DOUBLE:
        return read_array(constant.tensor, store).reshape(-1).astype(np.float64)
    source = raw_bytes(constant.tensor, store)
    raw = np.empty(source.nbytes, np.uint8)
    source.read_into(0, raw)
    source.close()
    return raw.view("<f8").astype(np.float64)


def _finite(factors: ChannelFactors) -> ChannelFactors | str:
    return factors if factors.finite else NOT_FINITE


_Read = Callable[[FactorReader, onnx.NodeProto, int, int, int], "ChannelFactors | str | None"]

_OPERATORS: dict[str, _Read] = {
    "BatchNormalization": FactorReader._batch_normalization,
    "Mul": FactorReader._multiplication,
    "Add": FactorReader._addition,
}
