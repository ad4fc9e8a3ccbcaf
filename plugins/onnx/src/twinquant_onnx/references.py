"""Which files a model file refers to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx

from twinquant.errors import ModelFileError
from twinquant_onnx.external import external_entries
from twinquant_onnx.graph import stored_index
from twinquant_onnx.load import read_skeleton
from twinquant_onnx.traversal import tensors_in

__all__ = ["external_locations"]


def external_locations(path: Path) -> Sequence[str]:
    """List the external data locations that an .onnx file refers to, as they stand in it, each once.

    Args:
        path: any file; one that is missing or no ONNX model refers to nothing.
    """
    try:
        model, _ = read_skeleton(path)
    except ModelFileError:
        return ()
    external = (tensor for tensor, _ in tensors_in(model) if tensor.data_location == onnx.TensorProto.EXTERNAL)
    locations = (external_entries(tensor).get("location", "") for tensor in external if stored_index(tensor) is None)
    return tuple(dict.fromkeys(location for location in locations if location))
