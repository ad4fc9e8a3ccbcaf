"""Exporting a module once more, for batches of other sizes than that of the example inputs."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch.utils import _pytree as pytree

from twinquant.errors import ArgumentError, UnsupportedModelError
from twinquant.registry.float_model import Array
from twinquant_onnx.layers import LoadedModel, analyse
from twinquant_torch.equality import check_equal
from twinquant_torch.export import export
from twinquant_torch.inputs import InputLayout, device_of
from twinquant_torch.naming import name_layers
from twinquant_torch.request import ExportRequest
from twinquant_torch.working_copy import WorkingCopy

__all__ = ["Resizer"]

_logger = logging.getLogger(__name__)

Axis = tuple[str, int]
"""An axis of an input: the input's name, and which."""


class Resizer:
    """Gives an exported model for batches of any size; nothing is exported before a batch needs it.

    What the exporters make of a batch's size may stand in a graph in many places, so a graph that was exported for one
    size is not run on another, nor on pieces of a batch: what a model does with a batch need not be what it does with
    its parts.

    Args:
        copy: the module.
        layout: its inputs, as exported with the example.
        calls: see `name_layers`.
        opset: the operator set that the user asked for.
    """

    def __init__(
        self, copy: WorkingCopy, layout: InputLayout, calls: Mapping[str, int] | None, opset: int | None
    ) -> None:
        self._copy, self._layout, self._calls, self._opset = copy, layout, calls, opset
        self._lengths = {name: tuple(tensor.shape) for name, tensor in zip(layout.names, layout.tensors, strict=True)}
        self._open: frozenset[Axis] = frozenset()
        self._model: LoadedModel | None = None

    def other_axes(self, feeds: Mapping[str, Array]) -> frozenset[Axis]:
        """Return the axes along which a batch has another length than the example."""
        return frozenset(
            (name, axis)
            for name, lengths in self._lengths.items()
            if name in feeds
            for axis, (length, given) in enumerate(zip(lengths, feeds[name].shape, strict=True))
            if length != given
        )

    def model_for(self, feeds: Mapping[str, Array]) -> LoadedModel:
        """Return a model that runs a batch; the same one for as many batches as it fits.

        Raises:
            UnsupportedModelError: the exporters cannot make one, or it does not compute what the module does.
        """
        wanted = self.other_axes(feeds)
        if self._model is None or not wanted <= self._open:
            self._model, self._open = None, self._open | wanted
            self._model = self._exported(feeds)
        return self._model

    def _exported(self, feeds: Mapping[str, Array]) -> LoadedModel:
        _logger.info("exporting the model again, for batches of another size than the example inputs")
        names = list(self._layout.names)
        labels: dict[int, str] = {}
        axes: dict[str, dict[int, str]] = {}
        for name, axis in sorted(self._open):
            length = feeds[name].shape[axis]
            axes.setdefault(name, {})[axis] = labels.setdefault(length, f"length_{len(labels)}")
        module = self._copy.anew()
        args, kwargs = self._layout.call_of(feeds, device_of(module.module))
        request = ExportRequest(module.module, args, kwargs, names, None, axes, self._opset)
        what = "the model that is exported for batches of another size than the example inputs"
        try:
            with module.undisturbed():
                exported = export(request)
            name_layers(exported.graph.model, module.module, self._calls)
            check_equal(exported.graph, feeds, self._outputs(feeds), what)
        except (UnsupportedModelError, ArgumentError) as error:
            shapes = ", ".join(f"{name!r} {list(array.shape)}" for name, array in feeds.items())
            raise UnsupportedModelError(
                "the model has layers that are no modules, such as functional ones; they are measured in the exported "
                f"model, which cannot be had for a batch of another size than the example inputs ({shapes}): {error}. "
                "Give example inputs of the size of the batches, and leave out a smaller last batch (drop_last=True)"
            ) from error
        self._folder = exported.folder  # the weights are there
        return analyse(exported.graph)

    def _outputs(self, feeds: Mapping[str, Array]) -> Sequence[torch.Tensor] | None:
        """Return what the module gives for a batch; None: something else than tensors."""
        with self._copy.undisturbed() as module, torch.inference_mode(False), torch.no_grad():
            args, kwargs = self._layout.call_of(feeds, device_of(module))
            leaves = [leaf for leaf in pytree.tree_leaves(module(*args, **kwargs)) if leaf is not None]
        return leaves if all(isinstance(leaf, torch.Tensor) for leaf in leaves) else None
