"""Folding what normalizes a convolution's output per channel into the convolution itself."""

from __future__ import annotations

import logging
from collections.abc import Collection
from dataclasses import dataclass

from twinquant_onnx.fuse.chains import find_chains
from twinquant_onnx.fuse.edit import fold_chains
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.topology import read_topology

__all__ = ["Fused", "fuse_model"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Fused:
    """One layer into which others were folded.

    Attributes:
        layer: the layer's name, which it keeps.
        folded: the names of the nodes that are gone, in graph order.
    """

    layer: str
    folded: tuple[str, ...]


def fuse_model(graph: OnnxGraph, *, skip: Collection[str] = ()) -> tuple[OnnxGraph, tuple[Fused, ...]]:
    """Fold BatchNormalization nodes, and Mul and Add nodes with a constant per channel, into the layers before them.

    The layers are Conv and ConvTranspose nodes of the main graph with a constant weight. What follows is folded as far
    as nobody else reads the tensors in between. A fused layer keeps its name and makes the last folded node's output;
    a layer without bias gets one, `<layer>.bias`. Every node of the result has a name: the one that it had in the
    given graph, also where that was made up from its position. Weights are computed when they are read. Why something
    that could be folded was not is told at level INFO by the loggers of this package.

    Args:
        graph: the model; it is not modified.
        skip: names of the layers into which nothing is folded.

    Returns:
        The fused model, and what was folded into what, in graph order.
    """
    topology = read_topology(graph.model.graph)
    chains = find_chains(graph, topology, skip)
    fused = tuple(
        Fused(topology.names[chain.layer], tuple(topology.names[index] for index in chain.folded)) for chain in chains
    )
    for each in fused:
        _logger.debug("layer %r: %s folded into it", each.layer, ", ".join(map(repr, each.folded)))
    return fold_chains(graph, topology, chains), fused
