"""How much each layer suffers from its quantization alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx

from twinquant.calibration.evaluation import Similarity
from twinquant.outputs import Flavor
from twinquant.plan import build_plan
from twinquant.records import RecordSet
from twinquant_onnx.constants import ConstantFinder
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.insert import build_twin
from twinquant_onnx.insert.twin import drop_op_data_type
from twinquant_onnx.layers import LoadedModel, Site, analyse
from twinquant_onnx.load import load_model
from twinquant_onnx.run import Pipeline
from twinquant_onnx.write import write_model

__all__ = ["layer_similarities"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class _Layer:
    """One layer with its surroundings: what it reads besides constants, and what it gives."""

    name: str
    reads: tuple[str, ...]
    output: str


def layer_similarities(
    float_model: LoadedModel,
    quantized_model: LoadedModel,
    records: RecordSet,
    feeds: Mapping[str, Array],
    similarity: Similarity,
    folder: Path,
) -> dict[str, float]:
    """Compare each layer's float output with the output of the quantized layer for the same, exact input.

    One layer after the other is computed while the float model runs, and the tensors are dropped as soon as no layer
    needs them.

    Args:
        float_model: the float model, fused, not balanced.
        quantized_model: the same with balanced weights; the records belong to it.
        records: the factors of the layers that are compared.
        feeds: one batch, an array for every input.
        similarity: compares two outputs.
        folder: where the quantized model may be written; empty.

    Returns:
        The similarities by layer, in graph order.

    Raises:
        VerificationError: ONNX Runtime cannot run the model.
    """
    layers = [
        _layer(float_model, site) for _, site in sorted(float_model.sites.items()) if site.name in records.records
    ]
    twin = _fake_quant(quantized_model, records, layers, folder)
    nodes = list(twin.model.graph.node)
    open_layers = Counter(tensor for layer in layers for tensor in (*layer.reads, layer.output))
    source = onnx.GraphProto(node=float_model.graph.model.graph.node)
    for node in source.node:
        drop_op_data_type(node)
    values: dict[str, Array] = {}
    found: dict[str, float] = {}
    for tensor, array in Pipeline(float_model.graph, source.node, open_layers).run(feeds):
        values[tensor] = array
        for layer in layers:
            if layer.name in found or not values.keys() >= {*layer.reads, layer.output}:
                continue
            inputs = {name: values[name] for name in layer.reads}
            piece = [node for node in nodes if not set(layer.reads).intersection(node.output)]
            ((_, quantized),) = Pipeline(twin, piece, [layer.output], layer.reads).run(inputs)
            found[layer.name] = float(similarity(values[layer.output], quantized))
            for name in (*layer.reads, layer.output):
                open_layers[name] -= 1
                if not open_layers[name]:
                    del values[name]
    return {layer.name: found[layer.name] for layer in layers if layer.name in found}


def _layer(model: LoadedModel, site: Site) -> _Layer:
    main = model.graph.model.graph
    finder = ConstantFinder(main, model.topology)
    indices = {site.index, site.activation.node, site.output_node}
    inner = {tensor for index in indices for tensor in main.node[index].output}
    reads = dict.fromkeys(
        tensor
        for index in sorted(indices)
        for tensor in main.node[index].input
        if tensor and tensor not in inner and finder.find(tensor, through_transpose=True) is None
    )
    output = next(tensor for tensor in main.node[site.output_node].output if tensor)
    return _Layer(site.name, tuple(reads), output)


def _fake_quant(model: LoadedModel, records: RecordSet, layers: list[_Layer], folder: Path) -> OnnxGraph:
    """Return the fake-quant twin; the layers' outputs are outputs of the graph, so that they keep their names.

    It is written: the weights of a twin that is not can only be read once, from the first to the last.
    """
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model.graph.model)
    outputs = exposed.graph.output
    outputs.extend(
        onnx.ValueInfoProto(name=layer.output) for layer in layers if layer.output not in model.topology.outputs
    )
    loaded = analyse(OnnxGraph(exposed, model.graph.store, model.graph.inputs))
    twin = build_twin(loaded, build_plan(records, loaded.layers, "onnx"), Flavor.FAKE_QUANT)
    return load_model(write_model(twin, folder, "", Flavor.FAKE_QUANT.value)[0])
