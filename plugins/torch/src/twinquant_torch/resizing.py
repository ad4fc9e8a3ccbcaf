"""Exporting a module once more, for batches of other sizes than that of the example inputs."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from twinquant.errors import ArgumentError, UnsupportedModelError
from twinquant.registry.float_model import Array
from twinquant_onnx.layers import LoadedModel, analyse
from twinquant_torch.equality import check_equal, difference
from twinquant_torch.export import Exported, export_as
from twinquant_torch.inputs import Call, InputLayout, device_of
from twinquant_torch.naming import name_layers
from twinquant_torch.probe import run_once, tensors_of
from twinquant_torch.request import ExportRequest
from twinquant_torch.working_copy import WorkingCopy

__all__ = ["Resizer"]

_logger = logging.getLogger(__name__)

_WHAT = "the model that is exported for batches of another size than the example inputs"

Axis = tuple[str, int]
"""An axis of an input: the input's name, and which."""

Shapes = tuple[tuple[str, tuple[int, ...]], ...]
"""The shapes of a batch."""


class Resizer:
    """Gives an exported model for batches of any size; nothing is exported before a batch needs it.

    What the exporters make of a batch's size may stand in a graph in many places, so a graph that was exported for one
    size is not run on another, nor on pieces of a batch: what a model does with a batch need not be what it does with
    its parts. One that was exported for any size is compared with the module for every size that comes; if it keeps a
    size, the module is exported for exactly the one that is wanted.

    Args:
        copy: the module.
        layout: its inputs, as exported with the example.
        exported: what was made of the example, named: its layers and their names are those of every other model.
        calls: see `name_layers`.
        opset: the operator set that the user asked for.
    """

    def __init__(
        self,
        copy: WorkingCopy,
        layout: InputLayout,
        exported: Exported,
        calls: Mapping[str, int] | None,
        opset: int | None,
    ) -> None:
        self._copy, self._layout, self._calls, self._opset = copy, layout, calls, opset
        self._original, self._layers = exported, _layers_of(analyse(exported.graph))
        self._lengths = {name: tuple(tensor.shape) for name, tensor in zip(layout.names, layout.tensors, strict=True)}
        self._original_open = _open_axes(exported)
        self._original_right: set[Shapes] = set()
        self._open: frozenset[Axis] = frozenset()
        self._right: set[Shapes] = set()
        self._model: LoadedModel | None = None
        self._exported: Exported | None = None

    def original_fits(self, feeds: Mapping[str, Array]) -> bool:
        """Tell whether what was exported with the example runs a batch: it is compared for every size that comes."""
        axes, shapes = self._other_axes(feeds), _shapes(feeds)
        if (
            axes
            and axes <= self._original_open
            and shapes not in self._original_right
            and self._is_right(self._original, feeds)
        ):
            self._original_right.add(shapes)
        return not axes or shapes in self._original_right

    def fits(self, feeds: Mapping[str, Array]) -> bool:
        """Tell whether the model that was asked for last can run a batch."""
        return self._model is not None and _shapes(feeds) in self._right

    def model_for(self, feeds: Mapping[str, Array]) -> LoadedModel:
        """Return a model that runs a batch; the same one for as many batches as it fits.

        Raises:
            UnsupportedModelError: the exporters cannot make one, or it does not compute what the module does.
        """
        if self._model is not None and (self.fits(feeds) or self._is_right_for(feeds)):
            return self._model
        self._model = self._exported = None
        self._right.clear()
        self._open |= self._other_axes(feeds)
        reasons: list[str] = []
        for axes in (self._open, frozenset[Axis]()):
            try:
                self._model = self._export(feeds, axes)
            except (UnsupportedModelError, ArgumentError) as error:
                reasons.append(str(error))
                continue
            self._right.add(_shapes(feeds))
            return self._model
        shapes = ", ".join(f"{name!r} {list(array.shape)}" for name, array in feeds.items())
        raise UnsupportedModelError(
            "the model has layers that are no modules, such as functional ones; they are measured in the exported "
            f"model, which cannot be had for a batch of another size than the example inputs ({shapes}): "
            f"{reasons[-1]}. Give example inputs of the size of the batches, and leave out a smaller last batch "
            "(drop_last=True)"
        )

    def _other_axes(self, feeds: Mapping[str, Array]) -> frozenset[Axis]:
        """Return the axes along which a batch has another length than the example."""
        return frozenset(
            (name, axis)
            for name, lengths in self._lengths.items()
            if name in feeds
            for axis, (length, given) in enumerate(zip(lengths, feeds[name].shape, strict=True))
            if length != given
        )

    def _is_right_for(self, feeds: Mapping[str, Array]) -> bool:
        assert self._exported is not None  # there is a model
        if not self._other_axes(feeds) <= self._open or not self._is_right(self._exported, feeds):
            return False
        self._right.add(_shapes(feeds))
        return True

    def _is_right(self, exported: Exported, feeds: Mapping[str, Array]) -> bool:
        expected = tensors_of(run_once(self._copy.anew(), *self._call(feeds)))
        problem = difference(exported.graph, feeds, expected, _WHAT)
        if problem:
            _logger.info("%s %s: it is exported again", _WHAT, problem)
        return not problem

    def _export(self, feeds: Mapping[str, Array], axes: frozenset[Axis]) -> LoadedModel:
        """Export the module for a batch, and for any other length of some axes."""
        _logger.info("exporting the model again, for batches of another size than the example inputs")
        labels: dict[int, str] = {}
        dynamic: dict[str, dict[int, str]] = {}
        for name, axis in sorted(axes):
            length = feeds[name].shape[axis]
            dynamic.setdefault(name, {})[axis] = labels.setdefault(length, f"length_{len(labels)}")
        traced = self._copy.anew()
        args, kwargs = self._call(feeds)
        request = ExportRequest(
            traced.module, args, kwargs, list(self._layout.names), None, dynamic or None, self._opset
        )
        expected = tensors_of(run_once(self._copy.anew(), args, kwargs))

        def accept(exported: Exported) -> LoadedModel:
            name_layers(exported.graph.model, traced.module, self._calls)
            model = analyse(exported.graph)
            if exported.exporter != self._original.exporter or _layers_of(model) != self._layers:
                raise UnsupportedModelError(f"{_WHAT} has other layers, or calls them otherwise")
            check_equal(exported.graph, feeds, expected, _WHAT)
            self._exported = exported  # which keeps the files of its weights
            return model

        with traced.undisturbed():
            return export_as(request, accept)

    def _call(self, feeds: Mapping[str, Array]) -> Call:
        return self._layout.call_of(feeds, device_of(self._copy.module))


def _open_axes(exported: Exported) -> frozenset[Axis]:
    """Return the axes of the inputs that have no fixed length."""
    return frozenset(
        (value.name, axis)
        for value in exported.graph.model.graph.input
        for axis, dim in enumerate(value.type.tensor_type.shape.dim)
        if not dim.HasField("dim_value")
    )


def _layers_of(model: LoadedModel) -> list[tuple[str, str]]:
    """Return the names and types of the layers that may be looked at."""
    return sorted((layer.name, layer.op_type) for layer in model.layers if layer.kind is not None)


def _shapes(feeds: Mapping[str, Array]) -> Shapes:
    return tuple((name, tuple(array.shape)) for name, array in feeds.items())
