"""From a modified model back to the model that is saved."""

from __future__ import annotations

from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.modified.balancing import remove_division
from twinquant_onnx.modified.observation import remove_observation

__all__ = ["without_calibration"]


def without_calibration(graph: OnnxGraph) -> OnnxGraph:
    """Return the graph without what `quantize_model` inserted; any other graph as it is.

    Balanced weights stay: the twins divide the activations by the factors of the record.
    """
    return remove_division(remove_observation(graph))
