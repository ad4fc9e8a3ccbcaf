"""The exported model as the plugin works on it: the ONNX plugin's graph, and the module that it came from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch

from twinquant.plan import LayerInfo
from twinquant_onnx.layers import LoadedModel
from twinquant_torch.export import ScratchFolder
from twinquant_torch.inputs import InputLayout
from twinquant_torch.naming import NamedLayers
from twinquant_torch.working_copy import WorkingCopy

__all__ = ["TorchGraph", "TorchOrigin"]


@dataclass(frozen=True, slots=True, eq=False)
class TorchOrigin:
    """Where an exported graph comes from.

    Attributes:
        copy: the module: a copy of the user's.
        layout: how its arguments are made of tensors.
        expected: what the module gives for the example inputs; None: something else than tensors.
    """

    copy: WorkingCopy
    layout: InputLayout
    expected: tuple[torch.Tensor, ...] | None = None

    @property
    def module(self) -> Any:
        """The module itself."""
        return self.copy.module


@dataclass(frozen=True, slots=True, eq=False)
class TorchGraph:
    """An exported model.

    Attributes:
        model: the ONNX graph: what is quantized and written.
        layers: its nodes; those that torch's side cannot have quantized are refused.
        named: what the names of layers mean in torch.
        origin: the module; None: an exported program, or a file.
        folder: where the weights are, as long as this object lives; None: in memory, or in the user's files.
    """

    model: LoadedModel
    layers: tuple[LayerInfo, ...]
    named: NamedLayers
    origin: TorchOrigin | None = None
    folder: ScratchFolder | None = None

    @classmethod
    def of(
        cls,
        model: LoadedModel,
        named: NamedLayers,
        origin: TorchOrigin | None = None,
        folder: ScratchFolder | None = None,
    ) -> TorchGraph:
        """Return the graph of an analysed model."""
        layers = tuple(
            replace(layer, refusal=named.refusals[layer.name]) if layer.name in named.refusals else layer
            for layer in model.layers
        )
        return cls(model, layers, named, origin, folder)

    def changed(self, model: LoadedModel) -> TorchGraph:
        """Return this graph with another model, whose layers have the same names."""
        return TorchGraph.of(model, self.named, self.origin, self.folder)
