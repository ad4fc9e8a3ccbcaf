"""From a module to an ONNX graph, with torch's own exporters."""

from __future__ import annotations

import contextlib
import logging
import re
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.utils import _pytree as pytree

from twinquant.errors import ArgumentError, UnsupportedModelError
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.load import load_model
from twinquant_torch.folding import fold_constants
from twinquant_torch.hooks import without_fast_path
from twinquant_torch.quiet import quiet
from twinquant_torch.reasons import advice_for, shortened
from twinquant_torch.request import OLDEST_OPSET, ExportRequest, input_names, named_axes
from twinquant_torch.working_copy import cloned

__all__ = ["Exported", "ScratchFolder", "export", "export_as"]

_logger = logging.getLogger(__name__)

_FIRST_DYNAMO = (2, 6)
"""The first release whose dynamo exporter can be told not to fuse, so that the configuration decides about fusion."""

_DYNAMO, _TORCHSCRIPT = "dynamo", "TorchScript"

_T = TypeVar("_T")


class ScratchFolder:
    """A temporary folder that is removed when nobody needs this object any more."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="twinquant-torch-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


@dataclass(frozen=True, slots=True, eq=False)
class Exported:
    """What an exporter made.

    Attributes:
        graph: the model; the caller may edit its message.
        exporter: the name of the exporter.
        folder: where its weights are, as long as this object lives; None: in memory.
    """

    graph: OnnxGraph
    exporter: str
    folder: ScratchFolder | None = None


def export(request: ExportRequest) -> Exported:
    """Export a module: with the dynamo exporter, and with the older one where that fails or is not there.

    Nothing is written to the working folder.

    Args:
        request: what is exported; `check_request` has been through it.

    Raises:
        ArgumentError: a name in `dynamic_axes` is that of no input or output, or the exporters do not give the names or
            the operator set that were asked for.
        UnsupportedModelError: no exporter can trace the module.
    """
    return export_as(request, lambda exported: exported)


def export_as(request: ExportRequest, accept: Callable[[Exported], _T]) -> _T:
    """Export a module, and return what is made of the first exporter's model that is accepted.

    Args:
        request: what is exported; `check_request` has been through it.
        accept: takes an exported model; raises UnsupportedModelError where it is not right, and the next exporter is
            tried.

    Raises:
        ArgumentError: see `export`.
        UnsupportedModelError: no exporter can trace the module, or what they make is not accepted.
    """
    reasons: list[str] = []
    refused: UnsupportedModelError | None = None
    for name, exporter in _exporters(request.module):
        frozen: list[str] = []
        try:
            with quiet(frozen, descriptors=exporter is _export_torchscript), without_fast_path():
                exported = exporter(request)
        except (ArgumentError, MemoryError):
            raise
        except Exception as error:  # the exporters raise whatever a module or torch's internals raise
            _logger.debug("the %s exporter failed", name, exc_info=error)
            reasons.append(f"{name} exporter: {shortened(_root(error))}")
            continue
        if frozen and not _is_traceable(request):
            # A value of the example inputs became a constant.
            reasons.append(f"{name} exporter: {shortened(frozen[0])}")
            continue
        given = _opset(exported.graph.model)
        if request.opset is not None and given != request.opset:
            reasons.append(f"{name} exporter: it gives operator set {given} instead of {request.opset}")
            continue
        _check_names(request, exported.graph.model.graph)
        _name_axes(request, exported.graph.model.graph)
        try:
            accepted = accept(exported)
        except UnsupportedModelError as error:
            _logger.debug("the %s exporter's model is not right", name, exc_info=error)
            refused = refused or error
            continue
        for message in frozen:
            _logger.warning("%s", message)
        if reasons or refused is not None:
            why = [*reasons, *([] if refused is None else [str(refused)])]
            _logger.info("exported with the %s exporter. %s", name, ". ".join(why))
        return accepted
    if refused is not None:
        raise UnsupportedModelError(". ".join([str(refused), *reasons])) from refused
    if request.opset is not None and all("operator set" in reason or "opset" in reason for reason in reasons):
        raise ArgumentError(
            f"opset: torch {torch.__version__} cannot export this model with operator set {request.opset}: "
            f"{'. '.join(reasons)}. Leave opset out, or choose another one"
        )
    raise UnsupportedModelError(f"the model cannot be exported. {'. '.join(reasons)}. {advice_for(reasons)}")


def _opset(model: Any) -> int:
    return next((int(entry.version) for entry in model.opset_import if not entry.domain), 0)


def _is_traceable(request: ExportRequest) -> bool:
    """Tell whether a module is independent of its inputs' values, though the older exporter warns that it may not be.

    It warns of checks of shapes, too; `torch.export` knows shapes from values. It is asked about the example's lengths
    only, as it cannot leave open all axes that the older exporter can, such as the time of an LSTM; whether a length
    became a constant is seen by running the model with another one.
    """
    try:
        with quiet([]), without_fast_path():
            args, kwargs = cloned((request.args, dict(request.kwargs or {})))
            torch.export.export(request.module, args, kwargs, strict=False)
    except Exception as error:  # it raises whatever a module or torch's internals raise
        _logger.debug("torch.export failed", exc_info=error)
        return False
    return True


def _check_names(request: ExportRequest, graph: Any) -> None:
    """Refuse names that the exporter has not given, because they are taken, or because they are too few."""
    initializers = {tensor.name for tensor in graph.initializer}
    for option, wanted, values in (
        ("input_names", request.input_names, [value.name for value in graph.input if value.name not in initializers]),
        ("output_names", request.output_names, [value.name for value in graph.output]),
    ):
        # The older exporter leaves out inputs that nobody reads.
        known = list(wanted or values) if option == "output_names" else [n for n in wanted or values if n in values]
        if known != values:
            raise ArgumentError(
                f"{option}: the exported model has {', '.join(map(repr, values))} instead of "
                f"{', '.join(map(repr, wanted or ()))}; a name may be that of a weight: choose other names, one each"
            )


def _name_axes(request: ExportRequest, graph: Any) -> None:
    """Give the axes of any length the user's names instead of the exporter's. Edits `graph`."""
    values = {value.name: value for value in (*graph.input, *graph.output)}
    wanted: dict[str, str] = {}
    for name in request.dynamic_axes or ():
        if name not in values:
            raise ArgumentError(
                f"dynamic_axes: the model has no input or output {name!r}; it has {', '.join(map(repr, values))}"
            )
        dims = values[name].type.tensor_type.shape.dim
        for axis, label in named_axes(request.dynamic_axes, name).items():
            if axis < len(dims) and dims[axis].dim_param:
                wanted.setdefault(dims[axis].dim_param, label)
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda word: wanted.get(word[0], word[0]), dim.dim_param)


def _exporters(module: Any) -> list[tuple[str, Callable[[ExportRequest], Exported]]]:
    release = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    exporters: list[tuple[str, Callable[[ExportRequest], Exported]]] = []
    if release >= _FIRST_DYNAMO:
        exporters.append((_DYNAMO, _export_dynamo))
    if isinstance(module, torch.nn.Module):
        exporters.append((_TORCHSCRIPT, _export_torchscript))
    if not exporters:
        raise UnsupportedModelError(
            f"an exported program needs torch {'.'.join(map(str, _FIRST_DYNAMO))} or newer, this is "
            f"{torch.__version__}; give the torch.nn.Module and example inputs"
        )
    return exporters


def _export_dynamo(request: ExportRequest) -> Exported:
    module = request.module
    args, kwargs = cloned((request.args, dict(request.kwargs or {})))
    if request.dynamic_axes and isinstance(module, torch.nn.Module):
        (args, kwargs), shapes = _dynamic(request)
        # torch.onnx.export by itself closes in silence an axis that it cannot keep open, such as the time of an LSTM.
        module = torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
        args, kwargs = (), {}
    program = torch.onnx.export(
        module,
        _positional(args, kwargs),
        None,
        kwargs=kwargs or None,
        input_names=list(request.input_names or ()) or None,
        output_names=list(request.output_names or ()) or None,
        opset_version=request.opset,
        dynamo=True,
        verbose=False,
        optimize=False,
    )
    assert program is not None  # so it is where no file is given
    fold_constants(program.model)
    return Exported(load_model(program.model), _DYNAMO)


def _export_torchscript(request: ExportRequest) -> Exported:
    folder = ScratchFolder()
    path = folder.path / "model.onnx"
    options: dict[str, Any] = {"dynamo": False} if "dynamo" in torch.onnx.export.__code__.co_varnames else {}
    names = input_names(request)  # its own would be names like input.1
    with torch.no_grad(), _called_by_position(request) as positional:
        torch.onnx.export(
            request.module,
            positional,
            str(path),
            input_names=names,
            output_names=list(request.output_names or ()) or None,
            dynamic_axes={name: named_axes(request.dynamic_axes, name) for name in request.dynamic_axes or ()},
            opset_version=request.opset or OLDEST_OPSET,
            # In evaluation mode this exporter folds BatchNormalization by itself; the configuration decides about that.
            training=torch.onnx.TrainingMode.PRESERVE,
            **options,
        )
    return Exported(load_model(path), _TORCHSCRIPT, folder)


@contextlib.contextmanager
def _called_by_position(request: ExportRequest) -> Iterator[tuple[Any, ...]]:
    """Let a module be called with nothing but its tensors, which is all that the older exporter does, and give them.

    It knows no keyword-only arguments. `forward` is replaced in the module itself, so that all paths stay.
    """
    args, kwargs = cloned((request.args, dict(request.kwargs or {})))
    if not kwargs:
        yield _positional(args, {})
        return
    leaves, spec = pytree.tree_flatten((args, kwargs))
    module, forward = request.module, request.module.forward
    replaced = vars(module).get("forward")

    def by_position(*tensors: torch.Tensor) -> Any:
        given = iter(tensors)
        filled = [next(given) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(filled, spec)
        return forward(*args, **kwargs)

    module.forward = by_position
    try:
        yield tuple(leaf for leaf in leaves if isinstance(leaf, torch.Tensor))
    finally:
        del module.forward
        if replaced is not None:
            module.forward = replaced


def _positional(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, ...]:
    """Keep the exporters from taking a dict that is the last positional argument for keyword arguments."""
    return (*args, {}) if args and isinstance(args[-1], dict) and not kwargs else args


def _dynamic(request: ExportRequest) -> tuple[tuple[tuple[Any, ...], dict[str, Any]], Any]:
    """Return arguments to trace with, and which of their axes have any length.

    An axis of length 1 would be traced as fixed, so such an axis is traced with length 2.
    """
    leaves, spec = pytree.tree_flatten((request.args, dict(request.kwargs or {})))
    names = iter(input_names(request))
    dimensions: dict[str, Any] = {}
    traced: list[Any] = []
    shapes: list[Any] = []
    for leaf in leaves:
        if not isinstance(leaf, torch.Tensor):
            traced.append(leaf)
            shapes.append(None)
            continue
        name = next(names)
        axes = named_axes(request.dynamic_axes, name)
        for axis in axes:
            if leaf.shape[axis] == 1:
                leaf = torch.cat([leaf, leaf], axis)
        traced.append(leaf)
        shapes.append({axis: dimensions.setdefault(label, torch.export.Dim(label)) for axis, label in axes.items()})
    args, kwargs = pytree.tree_unflatten(traced, spec)
    shape_args, shape_kwargs = pytree.tree_unflatten(shapes, spec)
    return (args, kwargs), shape_kwargs if shape_kwargs else tuple(shape_args)


def _root(error: BaseException) -> str:
    """Return what the first cause of an exporter's error says."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__
