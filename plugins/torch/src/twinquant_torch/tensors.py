"""Tensors as arrays."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import onnx
import torch

__all__ = ["exact_array", "to_array"]


def to_array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Return the values of a tensor on any device; those of bfloat16, which NumPy has not, as float32."""
    values = tensor.detach()
    if values.dtype == torch.bfloat16:
        values = values.float()
    array: npt.NDArray[Any] = values.cpu().numpy()
    return array


def exact_array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Return the values of a tensor on any device, bfloat16 as the type of that name that ONNX's helpers use."""
    values = tensor.detach().cpu()
    if values.dtype != torch.bfloat16:
        return to_array(values)
    bits: npt.NDArray[Any] = values.contiguous().view(torch.int16).numpy()
    return bits.view(onnx.helper.tensor_dtype_to_np_dtype(onnx.TensorProto.BFLOAT16))
