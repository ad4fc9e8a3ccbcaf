"""Weights and biases of an exported graph in the shapes that torch's modules have."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from twinquant_onnx.constants import read_array
from twinquant_onnx.float_weights import layer_weight
from twinquant_torch.graph import TorchGraph

__all__ = ["layer_with_weights", "weight_of"]


def weight_of(graph: TorchGraph, layer: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a copy of a layer's weight, fused and balanced as the graph is.

    Args:
        graph: the graph.
        layer: the layer.
        shape: the weight's shape in its module.
    """
    weight = layer_weight(graph.model, layer, recurrence=False)
    values = np.array(weight.values[tuple(slice(0, length) for length in weight.values.shape)])
    if len(shape) == 2 and weight.out_axis:
        values = np.ascontiguousarray(values[..., 0].T)
    return torch.from_numpy(values).reshape(shape)


def layer_with_weights(graph: TorchGraph, layer: str, module: Any) -> Any:
    """Return a layer's module with the weight and the bias of the graph instead of its own; the module is not modified.

    Args:
        graph: the graph.
        layer: the layer.
        module: its module: a convolution, a transposed convolution or a Linear.
    """
    site = next(site for site in graph.model.sites.values() if site.name == layer)
    like = module.weight
    # A copy of everything but the tensors, which may be large.
    shallow = module.__new__(type(module))
    shallow.__dict__.update(module.__dict__)
    shallow._parameters = dict(module._parameters)
    shallow._forward_pre_hooks = type(module._forward_pre_hooks)()
    shallow._forward_hooks = type(module._forward_hooks)()
    shallow._parameters["weight"] = torch.nn.Parameter(
        weight_of(graph, layer, tuple(like.shape)).to(like), requires_grad=False
    )
    if site.bias is not None:
        values = np.array(read_array(site.bias.tensor, graph.model.graph.store)).reshape(-1)
        shallow._parameters["bias"] = torch.nn.Parameter(torch.from_numpy(values).to(like), requires_grad=False)
    return shallow
