"""From a module to an ONNX graph, with torch's own exporters."""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import re
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from twinquant.errors import ArgumentError, UnsupportedModelError
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.load import load_model
from twinquant_torch.folding import fold_constants
from twinquant_torch.hooks import without_fast_path

__all__ = ["ExportRequest", "Exported", "ScratchFolder", "export", "input_names"]

_logger = logging.getLogger(__name__)

_FIRST_DYNAMO = (2, 6)
"""The first release whose dynamo exporter can be told not to fuse, so that the configuration decides about fusion."""

_OLDEST_OPSET = 17

_LONGEST_REASON = 400


@dataclass(frozen=True, slots=True, eq=False)
class ExportRequest:
    """What is exported, and how.

    Attributes:
        module: a module in evaluation mode, or an exported program.
        args: positional arguments of `forward`.
        kwargs: its keyword arguments.
        input_names: see `TorchModel`.
        output_names: see `TorchModel`.
        dynamic_axes: see `TorchModel`.
        opset: see `TorchModel`.
    """

    module: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    dynamic_axes: Mapping[str, Mapping[int, str] | Sequence[int]] | None = None
    opset: int | None = None


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
        folder: where its weights are, as long as this object lives; None: in memory.
    """

    graph: OnnxGraph
    folder: ScratchFolder | None = None


def export(request: ExportRequest) -> Exported:
    """Export a module: with the dynamo exporter, and with the older one where that fails or is not there.

    Nothing is written to the working folder.

    Raises:
        ArgumentError: the operator set is too old, or a name in `dynamic_axes` is that of no input or output.
        UnsupportedModelError: no exporter can trace the module.
    """
    if request.opset is not None and request.opset < _OLDEST_OPSET:
        raise ArgumentError(f"opset: must be {_OLDEST_OPSET} or newer, got {request.opset}")
    reasons: list[str] = []
    for name, exporter in _exporters(request.module):
        frozen: list[str] = []
        try:
            with _quiet(frozen), without_fast_path():
                exported = exporter(request)
        except (ArgumentError, MemoryError):
            raise
        except Exception as error:  # the exporters raise whatever a module or torch's internals raise
            _logger.debug("the %s exporter failed", name, exc_info=error)
            reasons.append(f"{name} exporter: {_shortened(_root(error))}")
            continue
        if frozen and reasons:
            # A value of the example inputs became a constant: what the other exporter could not do is not done here.
            reasons.append(f"{name} exporter: {_shortened(frozen[0])}")
            continue
        for message in frozen:
            _logger.warning("%s", message)
        _name_axes(request, exported.graph.model.graph)
        return exported
    raise UnsupportedModelError(
        f"the model cannot be exported. {'. '.join(reasons)}. Check that it runs on the example inputs; forward must "
        "not branch on values of tensors, and must return tensors only: move such code out of the model"
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
        exporters.append(("dynamo", _export_dynamo))
    if isinstance(module, torch.nn.Module):
        exporters.append(("TorchScript", _export_torchscript))
    if not exporters:
        raise UnsupportedModelError(
            f"an exported program needs torch {'.'.join(map(str, _FIRST_DYNAMO))} or newer, this is "
            f"{torch.__version__}; give the torch.nn.Module and example inputs"
        )
    return exporters


def _export_dynamo(request: ExportRequest) -> Exported:
    module, args, kwargs = request.module, request.args, dict(request.kwargs or {})
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
    return Exported(load_model(program.model))


def _export_torchscript(request: ExportRequest) -> Exported:
    folder = ScratchFolder()
    path = folder.path / "model.onnx"
    positional = (*request.args, dict(request.kwargs)) if request.kwargs else _positional(request.args, {})
    options: dict[str, Any] = {"dynamo": False} if "dynamo" in torch.onnx.export.__code__.co_varnames else {}
    with torch.no_grad():
        torch.onnx.export(
            request.module,
            positional,
            str(path),
            input_names=input_names(request),  # its own would be names like input.1
            output_names=list(request.output_names or ()) or None,
            dynamic_axes={name: named_axes(request.dynamic_axes, name) for name in request.dynamic_axes or ()},
            opset_version=request.opset or _OLDEST_OPSET,
            # In evaluation mode this exporter folds BatchNormalization by itself; the configuration decides about that.
            training=torch.onnx.TrainingMode.PRESERVE,
            **options,
        )
    return Exported(load_model(path), folder)


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


def input_names(request: ExportRequest) -> list[str]:
    """Return the names that the user knows the tensors by, in their order."""
    if request.input_names:
        return list(request.input_names)
    bound = inspect.signature(request.module.forward).bind(*request.args, **dict(request.kwargs or {}))
    names = []
    for name, value in bound.arguments.items():
        tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
        names += [name] if len(tensors) == 1 else [f"{name}_{index}" for index in range(len(tensors))]
    return names


def named_axes(dynamic_axes: Mapping[str, Any] | None, name: str) -> dict[int, str]:
    """Return the names of a tensor's axes that have any length."""
    axes = (dynamic_axes or {}).get(name, {})
    if isinstance(axes, Mapping):
        return {int(axis): str(label) for axis, label in axes.items()}
    return {int(axis): f"{name}_axis{axis}" for axis in axes}


@contextlib.contextmanager
def _quiet(frozen: list[str]) -> Iterator[None]:
    """Log what the exporters print, log and warn of: it is about their internals and packages that are not installed.

    A TracerWarning about the user's code is another matter: the older exporter has stored a value of the example inputs
    as a constant. Such warnings are added to `frozen`.
    """
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.partition(".")[0] == "torch"]
    handlers = [handler for logger in loggers for handler in logger.handlers]
    chatter = io.StringIO()
    for handler in handlers:
        handler.addFilter(_nothing)
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            contextlib.redirect_stdout(chatter),
            contextlib.redirect_stderr(chatter),
        ):
            warnings.simplefilter("always")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(_nothing)
        if chatter.getvalue():
            _logger.debug("%s", chatter.getvalue())
    own = str(Path(torch.__file__).parent)
    for warning in caught:
        message = f"{warning.filename}, line {warning.lineno}: {warning.message}"
        _logger.debug("%s", message)
        if warning.category.__name__ == "TracerWarning" and not warning.filename.startswith(own):
            frozen.append(message)


def _nothing(_: logging.LogRecord) -> bool:
    return False


def _root(error: BaseException) -> str:
    """Return what the first cause of an exporter's error says."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error) or type(error).__name__


def _shortened(text: str) -> str:
    """Return a text in one line, without colors and without the pages that the exporters add."""
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines()]
    line = " ".join(line for line in lines if line)
    return line if len(line) <= _LONGEST_REASON else f"{line[:_LONGEST_REASON]}..."
