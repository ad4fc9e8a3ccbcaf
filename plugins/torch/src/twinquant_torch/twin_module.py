"""A fake-quant twin as a torch module."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch.utils import _pytree as pytree

from twinquant_torch.inputs import InputLayout
from twinquant_torch.tensors import to_array

__all__ = ["TwinModule"]


class TwinModule(torch.nn.Module):
    """Runs a fake-quant twin in ONNX Runtime; takes and returns what the float model does.

    Args:
        path: the twin's file; it is read now.
        layout: the inputs of the float model.
        outputs: how its output is nested; None: it is not known, and several outputs come as a tuple.
    """

    def __init__(self, path: Path, layout: InputLayout, outputs: Any = None) -> None:
        super().__init__()
        self._session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        self._inputs = [value.name for value in self._session.get_inputs()]
        self._layout, self._outputs = layout, outputs
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the twin.

        Raises:
            DataError: the inputs are not what the example inputs were like.
        """
        leaves = self._layout.leaves_of(args, kwargs, None)
        tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
        feeds = {name: to_array(leaf) for name, leaf in zip(self._layout.names, tensors, strict=True)}
        found = self._session.run(None, {name: feeds[name] for name in self._inputs})
        outputs = [torch.from_numpy(array).to(tensors[0].device) for array in found]
        if self._outputs is not None and self._outputs.num_leaves == len(outputs):
            return pytree.tree_unflatten(outputs, self._outputs)
        return outputs[0] if len(outputs) == 1 else tuple(outputs)
