"""A fake-quant twin as a torch module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch

from twinquant_torch.tensors import to_array

__all__ = ["TwinModule"]


class TwinModule(torch.nn.Module):
    """Runs a fake-quant twin in ONNX Runtime; takes and returns tensors as the float model does.

    Args:
        path: the twin's file; it is read now.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._inputs = [value.name for value in self._session.get_inputs()]
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the twin; several outputs come as a tuple."""
        given = dict(zip(self._inputs, args, strict=False)) | kwargs
        outputs = self._session.run(None, {name: to_array(given[name]) for name in self._inputs})
        device = next((value.device for value in given.values() if isinstance(value, torch.Tensor)), None)
        tensors = tuple(torch.from_numpy(output).to(device) for output in outputs)
        return tensors[0] if len(tensors) == 1 else tensors
