"""From whatever the user gave as a torch model to its graph."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils import _pytree as pytree

from twinquant.errors import ArgumentError, DataError, ModelFileError, UnsupportedModelError
from twinquant.registry import Match
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.layers import analyse
from twinquant_onnx.load import load_model
from twinquant_onnx.modified.removal import without_calibration
from twinquant_onnx.recognize import recognize as recognize_onnx
from twinquant_torch.calibration import CalibrationModule
from twinquant_torch.equality import check_equal
from twinquant_torch.export import Exported, export_as
from twinquant_torch.graph import TorchGraph, TorchOrigin
from twinquant_torch.inputs import InputLayout, check_example, device_of, split_call
from twinquant_torch.lengths import check_lengths
from twinquant_torch.naming import NamedLayers, name_layers
from twinquant_torch.probe import probe, run_once, tensors_of
from twinquant_torch.refusals import refuse_active_training, refuse_module, refuse_training_program
from twinquant_torch.request import ExportRequest, check_request, input_names
from twinquant_torch.resizing import Resizer
from twinquant_torch.source import TorchModel
from twinquant_torch.tensors import to_array
from twinquant_torch.working_copy import WorkingCopy, cloned

__all__ = ["load", "load_module", "unwrapped"]

_logger = logging.getLogger(__name__)

_WHAT = "the exported model"

_WRAPPERS = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)


def load(source: Any, options: Mapping[str, Any]) -> TorchGraph:
    """Export a model once; everything after that is about the exported graph.

    Args:
        source: a module, a `TorchModel`, an `ExportedProgram`, a .pt2 file of one, or an .onnx file that this plugin
            wrote.
        options: fields of `TorchModel`.

    Raises:
        ArgumentError: a module without example inputs, or one that has measured balance factors only.
        DataError: the example inputs do not fit the module.
        ModelFileError: the file is missing or damaged.
        UnsupportedModelError: the module is in training mode or cannot be exported, or the file holds none.
    """
    source = unwrapped(source)
    if isinstance(source, CalibrationModule) and not options:
        return _calibrated(source)
    if isinstance(source, TorchModel):
        return load_module(replace(source, **options))
    if isinstance(source, torch.nn.Module):
        if options.get("example_inputs") is not None:
            return load_module(TorchModel(source, **options))
        raise ArgumentError(
            f"the torch module {type(source).__name__} needs example inputs, which it is traced with: pass "
            "example_inputs=..., one batch as forward takes it, or twinquant_torch.TorchModel(module, example_inputs)"
        )
    if options:
        raise ArgumentError(f"{', '.join(sorted(options))}: only for modules; an exported program has all this already")
    if isinstance(source, (str, os.PathLike)):
        return _load_file(Path(source))
    if isinstance(source, torch.export.ExportedProgram):
        return _load_program(source)
    raise ArgumentError(
        f"a torch.nn.Module with example inputs, a torch.export.ExportedProgram or a .pt2 file is expected, got "
        f"{type(source).__qualname__}"
    )


def unwrapped(module: Any) -> Any:
    """Return the module inside DataParallel, DistributedDataParallel and what `torch.compile` returns."""
    while isinstance(module, torch.nn.Module):
        if isinstance(module, _WRAPPERS):
            module = module.module
        elif type(module).__name__ == "OptimizedModule":
            module = module._orig_mod
        else:
            break
    return module


def _calibrated(module: CalibrationModule) -> TorchGraph:
    graph = module.calibration.require_complete().graph
    if graph is None:
        raise ArgumentError(
            "the module comes from quantize_preprocess, which measures balance factors only; call quantize_model with "
            "the same configuration and record, run the module that it returns, and save that one"
        )
    return graph


def load_module(source: TorchModel) -> TorchGraph:
    """Export a module, and compare the result with it.

    Raises:
        ArgumentError, DataError, UnsupportedModelError: see `load`.
    """
    module = unwrapped(source.module)
    if not isinstance(module, torch.nn.Module):
        raise ArgumentError(f"module: must be a torch.nn.Module, got {type(module).__name__}")
    if any(isinstance(inner, CalibrationModule) for inner in module.modules()):
        raise ArgumentError(
            "the module is a calibration model, which would take the runs of an export for batches of its own: pass "
            "the float model, or calibration_model.model"
        )
    refuse_module(module)
    args, kwargs = cloned(split_call(source.example_inputs))
    _refuse_wrong_arity(module, args, kwargs)
    check_example(args, kwargs, device_of(module))
    pristine = WorkingCopy.of(module)
    seen = probe(pristine, args, kwargs)
    traced = pristine.anew()
    request = ExportRequest(
        traced.module, args, kwargs, source.input_names, source.output_names, source.dynamic_axes, source.opset
    )
    check_request(request, seen.outputs)

    def accept(exported: Exported) -> TorchGraph:
        named = _named(exported, traced.module, seen.calls)
        layout = _layout(exported, request)
        resizer = Resizer(pristine, layout, exported, seen.calls, source.opset)
        origin = TorchOrigin(pristine, layout, resizer, seen.outputs, seen.output_spec)
        check_equal(named.model.graph, layout.example_feeds(), seen.outputs, _WHAT)
        check_lengths(named.model.graph, pristine, request, layout.names, _WHAT)
        return TorchGraph.of(named.model, named.named, origin, exported.folder)

    with traced.undisturbed():
        return export_as(request, accept)


def _layout(exported: Exported, request: ExportRequest) -> InputLayout:
    main = exported.graph.model.graph
    initializers = {tensor.name for tensor in main.initializer}
    names = tuple(value.name for value in main.input if value.name not in initializers)
    leaves, spec = pytree.tree_flatten((request.args, dict(request.kwargs or {})))
    if len(request.tensors) != len(names):
        # The older exporter leaves out inputs that nobody reads; it calls the others as forward does.
        names = tuple(input_names(request))
    declared = {value.name: value.type.tensor_type.shape.dim for value in main.input}
    open_axes = tuple(
        frozenset(axis for axis, dim in enumerate(declared[name]) if axis == 0 or not dim.HasField("dim_value"))
        if name in declared
        else frozenset(range(tensor.ndim))
        for name, tensor in zip(names, request.tensors, strict=True)
    )
    return InputLayout(tuple(leaves), spec, names, open_axes, _parameters(request.module))


def _parameters(module: Any) -> tuple[str, ...]:
    """Return the names of the arguments of a module's `forward`, as far as they are known."""
    try:
        return tuple(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        return ()  # a forward that is not written in Python


def _load_program(program: Any) -> TorchGraph:
    refuse_training_program(program)

    def accept(exported: Exported) -> TorchGraph:
        named = _named(exported, None)
        _compare_program(named.model.graph, program)
        return named

    return export_as(ExportRequest(program), accept)


def _compare_program(graph: OnnxGraph, program: Any) -> None:
    """Compare a graph with what its program computes on its example inputs, if it has any."""
    if program.example_inputs is None:
        _logger.info("the exported program holds no example inputs, so it is not compared with the model made of it")
        return
    args, kwargs = program.example_inputs
    initializers = {tensor.name for tensor in graph.model.graph.initializer}
    names = [value.name for value in graph.model.graph.input if value.name not in initializers]
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if len(names) != len(tensors):
        _logger.info("%s is not compared with the exported program, which has inputs that are not tensors", _WHAT)
        return
    # It may share its buffers with the program, so they are restored; a copy would be no better.
    try:
        expected = tensors_of(run_once(WorkingCopy(program.module(), False), args, kwargs))
    except Exception as error:  # noqa: BLE001  it is the user's code, and the inputs may be from elsewhere
        _logger.info("the exported program is not compared, as it does not run on the inputs that it holds: %s", error)
        return
    feeds = {name: to_array(tensor) for name, tensor in zip(names, tensors, strict=True)}
    check_equal(graph, feeds, expected, _WHAT)


def _named(exported: Exported, module: Any, calls: Mapping[str, int] | None = None) -> TorchGraph:
    model = exported.graph.model
    refuse_active_training(model, "the exported program" if module is None else f"the model {type(module).__name__}")
    named = name_layers(model, module, calls)
    return TorchGraph.of(analyse(exported.graph), named, folder=exported.folder)


def _refuse_wrong_arity(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    try:
        signature = inspect.signature(module.forward)
    except (TypeError, ValueError):
        return  # a forward that is not written in Python
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise DataError(
            f"example_inputs: {type(module).__name__}.forward takes {signature}: {error}; a tuple holds its positional "
            "arguments, a dict its keyword arguments, and a dict that is one argument goes into a tuple: ({...},)"
        ) from error


def _load_file(path: Path) -> TorchGraph:
    if not path.exists():
        raise ModelFileError(f"the torch file {str(path)!r} does not exist; check its path")
    if recognize_onnx(path) is not Match.NO:
        return TorchGraph.of(analyse(without_calibration(load_model(path))), NamedLayers({}, {}))
    if path.suffix.lower() != ".pt2":
        raise UnsupportedModelError(
            f"{str(path)!r} may hold anything that Python can pickle, so it is not opened; load the module yourself "
            "and pass it with example_inputs, or pass a .pt2 file that torch.export.save wrote"
        )
    try:
        program = torch.export.load(path)
    except Exception as error:  # torch raises whatever its unpacking of a damaged file raises
        raise ModelFileError(f"{str(path)!r} cannot be read as an exported program: {error}") from error
    return _load_program(program)
