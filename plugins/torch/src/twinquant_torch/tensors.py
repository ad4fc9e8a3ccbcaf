"""Tensors as arrays."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
import torch

__all__ = ["to_array"]


def to_array(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """Return the values of a tensor on any device; those of bfloat16, which NumPy has not, as float32."""
    values = tensor.detach()
    if values.dtype == torch.bfloat16:
        values = values.float()
    array: npt.NDArray[Any] = values.cpu().numpy()
    return array
