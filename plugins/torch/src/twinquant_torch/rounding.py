"""AdaRound for the layers of an exported model, on the values that their modules see."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils import _pytree as pytree

from twinquant.config import LayerConfig
from twinquant.errors import ConfigError
from twinquant.numerics import quantize_activation, reciprocal_scale
from twinquant.records import LayerRecord, RecordSet
from twinquant.registry import RunBatch, Tap
from twinquant_onnx.float_weights import replace_weights
from twinquant_onnx.layers import LoadedModel, analyse
from twinquant_onnx.modified.balancing import divide_activations
from twinquant_torch.adaround import AdaParams, adaround_weight
from twinquant_torch.graph import TorchGraph
from twinquant_torch.graph_run import run_graph
from twinquant_torch.hooks import is_trainable, register
from twinquant_torch.inputs import Call
from twinquant_torch.tensors import to_array
from twinquant_torch.weights import layer_with_weights
from twinquant_torch.working_copy import cloned

__all__ = ["check_trainable", "round_weights"]


class _Seen(BaseException):
    """Ends a forward pass that has shown what it was run for; no model may catch it."""


def round_weights(
    graph: TorchGraph,
    settings: Mapping[str, LayerConfig],
    records: RecordSet,
    calls: Callable[[], Iterable[Call]],
) -> TorchGraph:
    """Return the graph with trained weights in some layers: on the grid, so that rounding to nearest keeps them.

    One layer after the other is trained on what it reads behind the layers that are trained already, quantized as its
    record says, towards what it gives in the float model: so it makes up for the errors before it.

    Args:
        graph: what the records are for: fused and balanced.
        settings: of the layers that are trained.
        records: the factors.
        calls: gives the calibration's batches, once for each layer.

    Raises:
        ConfigError: a layer is no module of its own, or there is no module at all.
        UnsupportedModelError: a layer is of no type that can be trained.
        CalibrationError: its values are NaN or infinite.
    """
    check_trainable(graph, settings)
    assert graph.origin is not None  # so it is of layers that can be trained
    trained: dict[str, npt.NDArray[Any]] = {}
    for name, layer in settings.items():
        module = graph.origin.module.get_submodule(graph.named.modules[name])
        exact = layer_with_weights(graph, name, module)
        options = layer.weight
        params = AdaParams(options.num_iteration, options.reg_param, options.beta_range, options.warm_start)
        record = records.records[name]
        weight = adaround_weight(
            exact,
            exact.weight.detach(),
            record.scale_w,
            options.num_bits,
            _samples(graph, trained, name, exact, records, calls),
            params,
        )
        trained[name] = to_array(weight)
    return graph.edited(lambda model: replace_weights(model, trained))


def check_trainable(graph: TorchGraph, settings: Mapping[str, LayerConfig]) -> None:
    """Refuse layers whose rounding cannot be trained.

    Args:
        graph: the graph.
        settings: of the layers that are to be trained.

    Raises:
        ConfigError: a layer is no module of its own, or there is no module at all.
    """
    if settings and graph.origin is None:
        raise ConfigError(
            "ada_quantize trains modules, and this model has none: use arq_quantize, or give the module itself instead "
            "of an exported program"
        )
    for name in settings:
        assert graph.origin is not None  # see above
        path = graph.named.modules.get(name)
        module = None if path is None else graph.origin.module.get_submodule(path)
        if module is None or not is_trainable(module):
            raise ConfigError(
                f"layer {name!r}: ada_quantize trains layers that are modules of their own with torch's own forward, "
                "padded with zeros, whose weight is a parameter; use arq_quantize",
                path=f"$.{name}.weight_quant_params.wts_algo",
            )


def _samples(
    graph: TorchGraph,
    trained: Mapping[str, npt.NDArray[Any]],
    name: str,
    exact: Any,
    records: RecordSet,
    calls: Callable[[], Iterable[Call]],
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield what a layer reads in each batch behind trained layers, quantized, and what it gives in the float model."""
    assert graph.origin is not None  # modules have one
    record = records.records[name]
    run = _run_trained(graph, trained, name, records) if trained else None
    for args, kwargs in calls():
        feeds = dict(zip(graph.origin.layout.names, _tensors(*cloned((args, kwargs))), strict=True)) if run else {}
        with graph.origin.copy.undisturbed() as whole:
            values = _values_read(whole, graph.named.modules[name], args, kwargs)
        with torch.inference_mode(False), torch.no_grad():
            behind = values
            if run is not None:
                ((_, arrays),) = run({input_name: to_array(tensor) for input_name, tensor in feeds.items()})
                behind = torch.from_numpy(np.concatenate(arrays)).to(values).reshape(values.shape)
            if record.tensor_balance_factor.size:
                reciprocals = _reciprocals(record.tensor_balance_factor, values, exact)
                values, behind = values * reciprocals, behind * reciprocals
            yield _as_quantized(behind, record), exact(values)


def _run_trained(graph: TorchGraph, trained: Mapping[str, npt.NDArray[Any]], name: str, records: RecordSet) -> RunBatch:
    """Return what computes a layer's input where the layers before it have trained weights."""
    # As it is now: more layers are trained later.
    weights = dict(trained)
    factors = {n: r.tensor_balance_factor for n, r in records.records.items() if r.tensor_balance_factor.size}

    def edit(model: LoadedModel) -> LoadedModel:
        model = replace_weights(model, weights)
        if factors:
            model = analyse(divide_activations(model, {n: f for n, f in factors.items() if n != name}))
        return model

    return run_graph(graph.edited(edit), [Tap(name)])


def _tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[torch.Tensor]:
    return [leaf for leaf in pytree.tree_leaves((args, dict(kwargs))) if isinstance(leaf, torch.Tensor)]


def _values_read(module: torch.nn.Module, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
    """Return what a layer reads in the float model."""
    read: list[torch.Tensor] = []

    def receive(tap: Tap, tensor: torch.Tensor) -> None:
        del tap
        read.append(tensor.detach())
        raise _Seen

    handle = register(module.get_submodule(path), Tap(path), receive)
    try:
        with torch.inference_mode(False), torch.no_grad():
            module(*args, **kwargs)
    except _Seen:
        pass
    finally:
        handle.remove()
    (values,) = read
    return values


def _reciprocals(factors: npt.NDArray[np.float32], values: torch.Tensor, layer: Any) -> torch.Tensor:
    """Shape what balanced activations are multiplied by so that it broadcasts over them."""
    spatial = layer.weight.ndim - 2
    return torch.from_numpy(np.float32(1) / factors).to(values).reshape(-1, *[1] * spatial)


def _as_quantized(values: torch.Tensor, record: LayerRecord) -> torch.Tensor:
    assert record.scale_d is not None and record.offset_d is not None  # calibrated
    bits = int((record.act_type or "INT8").removeprefix("INT"))
    integers = quantize_activation(to_array(values), float(reciprocal_scale(record.scale_d)), record.offset_d, bits)
    real = (integers.astype(np.float32) - np.float32(record.offset_d)) * np.float32(record.scale_d)
    return torch.from_numpy(real).to(values)
