"""Measure the quantization factors of the trained digits network by a plain min-max pass, and store them as a record.

Needs scikit-learn, twinquant and twinquant-onnx; see README.md beside this script.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from dataset import ONNX_NETWORK, as_input, split
from onnx import numpy_helper

from twinquant.records import LayerRecord, RecordSet, write_record_file

PER_CHANNEL = ("Conv",)
PER_TENSOR = ("Gemm",)
WITHOUT_WEIGHT = ("AveragePool",)


def activation_ranges(model: onnx.ModelProto, images: npt.NDArray[np.float32]) -> dict[str, tuple[float, float]]:
    """Run the float network with every intermediate tensor as an output, and return each tensor's (min, max)."""
    tapped = onnx.ModelProto()
    tapped.CopyFrom(model)
    known = {output.name for output in tapped.graph.output}
    names = [name for node in tapped.graph.node for name in node.output if name not in known]
    tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(tapped.SerializeToString(), providers=["CPUExecutionProvider"])
    arrays = {"image": images} | dict(
        zip((output.name for output in session.get_outputs()), session.run(None, {"image": images}), strict=True)
    )
    return {name: (float(array.min()), float(array.max())) for name, array in arrays.items()}


def activation_factors(low: float, high: float) -> tuple[float, int]:
    """Return (scale_d, offset_d) of int8 over [low, high], widened so that zero is one of the 256 values."""
    low, high = min(low, 0.0), max(high, 0.0)
    scale = float(np.float32((high - low) / 255))
    return scale, round(-low / scale) - 128


def weight_factors(op_type: str, weight: npt.NDArray[np.float32] | None) -> npt.NDArray[np.float32]:
    """Return scale_w: symmetric int8, `max|w| / 127`, per output channel or per tensor as the layer kind demands."""
    if weight is None:
        return np.ones(1, np.float32)
    rows = weight.reshape(len(weight), -1) if op_type in PER_CHANNEL else weight.reshape(1, -1)
    return (np.abs(rows).max(axis=1) / 127).astype(np.float32)


def main() -> None:
    """Write digits_record.txt beside the model."""
    model = onnx.load(ONNX_NETWORK / "digits.onnx")
    training, _ = split()
    ranges = activation_ranges(model, as_input(training.images))
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    records: dict[str, LayerRecord] = {}
    for node in model.graph.node:
        if node.op_type in PER_CHANNEL + PER_TENSOR + WITHOUT_WEIGHT:
            scale_d, offset_d = activation_factors(*ranges[node.input[0]])
            scale_w = weight_factors(node.op_type, weights.get(f"{node.name}.weight"))
            records[node.name] = LayerRecord(
                node.name,
                scale_d=scale_d,
                offset_d=offset_d,
                scale_w=scale_w,
                offset_w=np.zeros(len(scale_w), np.int32),
            )
    write_record_file(RecordSet(records), ONNX_NETWORK / "digits_record.txt")
    print(f"measured {len(records)} layers on {len(training.labels)} training digits")


if __name__ == "__main__":
    main()
