"""The simplest calibration there is, in NumPy and ONNX Runtime: run the float model, look at minima and maxima."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
from onnx import numpy_helper

from twinquant.records import LayerRecord, RecordSet


def measure(model_file, layers, batches, wide=()):
    """Return records of the layers.

    Activations: asymmetric over the range that the batches show, widened to hold zero; 8 bits, or 16 for the layers
    whose names are in `wide`. Weights: symmetric, 8 bits, per output channel for convolutions, else per tensor.
    """
    model = onnx.load(model_file)
    nodes = {node.name: node for node in model.graph.node}
    constants = constants_of(model)
    ranges = activation_ranges(model, {nodes[layer.name].input[0] for layer in layers}, batches)
    records = {}
    for layer in layers:
        node = nodes[layer.name]
        low, high = ranges[node.input[0]]
        bits = 16 if layer.name in wide else 8
        scale_d = np.float32(max(high - low, 1e-6) / (2**bits - 1))
        scale_w = weight_scales(node, constants)
        records[layer.name] = LayerRecord(
            key=layer.name,
            scale_d=float(scale_d),
            offset_d=int(np.rint(-low / scale_d)) - 2 ** (bits - 1),
            scale_w=scale_w,
            offset_w=np.zeros(len(scale_w), np.int32),
            act_type=f"INT{bits}",
        )
    return RecordSet(records)


def constants_of(model):
    """Every constant tensor by name, through Constant and Identity nodes."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            (value,) = (attribute.t for attribute in node.attribute if attribute.name == "value")
            constants[node.output[0]] = numpy_helper.to_array(value)
        elif node.op_type == "Identity" and node.input[0] in constants:
            constants[node.output[0]] = constants[node.input[0]]
    return constants


def activation_ranges(model, tensors, batches):
    """Run the model with the tensors as additional outputs; return (min, max) over all batches, zero included."""
    inputs = {value.name for value in model.graph.input}
    taps = sorted(tensors - inputs)
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    known = {value.name for value in model.graph.output}
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in taps if name not in known)
    session = onnxruntime.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    ranges = dict.fromkeys(tensors, (0.0, 0.0))
    for feeds in batches:
        arrays = dict(zip(taps, session.run(taps, feeds), strict=True))
        for name in tensors:
            array = feeds[name] if name in inputs else arrays[name]
            low, high = ranges[name]
            ranges[name] = min(low, float(array.min())), max(high, float(array.max()))
    return ranges


def weight_scales(node, constants):
    """Return scale_w as float32 (n,)."""
    if node.op_type == "AveragePool":
        return np.ones(1, np.float32)
    weight = np.abs(constants[node.input[1]])
    if node.op_type == "Conv":
        largest = weight.reshape(len(weight), -1).max(axis=1)
    elif node.op_type == "ConvTranspose":
        group = next((a.i for a in node.attribute if a.name == "group"), 1)
        grouped = weight.reshape(group, len(weight) // group, weight.shape[1], -1)  # (g, Cin/g, Cout/g, kernel)
        largest = grouped.max(axis=(1, 3)).reshape(-1)
    else:
        largest = weight.max().reshape(1)
    return np.maximum(largest / 127, 1e-9).astype(np.float32)
