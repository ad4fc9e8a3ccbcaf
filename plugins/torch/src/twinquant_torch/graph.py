"""The exported model as the plugin works on it: the ONNX plugin's graph, and the module that it came from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from twinquant.plan import LayerInfo
from twinquant_onnx.layers import LoadedModel
from twinquant_torch.export import ScratchFolder
from twinquant_torch.hooks import is_trainable
from twinquant_torch.inputs import InputLayout
from twinquant_torch.naming import NamedLayers
from twinquant_torch.resizing import Resizer
from twinquant_torch.working_copy import WorkingCopy

__all__ = ["Edit", "TorchGraph", "TorchOrigin"]

Edit = Callable[[LoadedModel], LoadedModel]
"""Returns another model, and leaves the given one as it is."""


@dataclass(frozen=True, slots=True, eq=False)
class TorchOrigin:
    """Where an exported graph comes from.

    Attributes:
        copy: the module: a copy of the user's.
        layout: how its arguments are made of tensors.
        resizer: gives the exported model for batches of other sizes.
        expected: what the module gives for the example inputs; None: something else than tensors.
        output_spec: how these are nested.
    """

    copy: WorkingCopy
    layout: InputLayout
    resizer: Resizer
    expected: tuple[torch.Tensor, ...] | None = None
    output_spec: Any = None

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
        edits: what was done to the model since it was exported.
    """

    model: LoadedModel
    layers: tuple[LayerInfo, ...]
    named: NamedLayers
    origin: TorchOrigin | None = None
    folder: ScratchFolder | None = None
    edits: tuple[Edit, ...] = ()

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
            replace(
                layer,
                refusal=named.refusals.get(layer.name, layer.refusal),
                untrainable=None if origin is None else _untrainable(layer, named, origin),
            )
            for layer in model.layers
        )
        return cls(model, layers, named, origin, folder)

    def edited(self, edit: Edit) -> TorchGraph:
        """Return this graph with a model that an edit makes of its own; layers keep their names."""
        changed = TorchGraph.of(edit(self.model), self.named, self.origin, self.folder)
        return replace(changed, edits=(*self.edits, edit))

    def edits_of(self, model: LoadedModel) -> LoadedModel:
        """Return what this graph's edits make of the same module's model, exported otherwise."""
        for edit in self.edits:
            model = edit(model)
        return model


def _untrainable(layer: LayerInfo, named: NamedLayers, origin: TorchOrigin) -> str | None:
    """Tell why the rounding of a layer's weight cannot be trained; None: it can, if its kind allows that."""
    path = named.modules.get(layer.name)
    if path is not None and is_trainable(origin.module.get_submodule(path)):
        return None
    return (
        "ada_quantize trains layers that are modules of their own with torch's own forward, padded with zeros, whose "
        "weight is a parameter"
    )
