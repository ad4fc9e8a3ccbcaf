"""Quantization of biases."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BiasRangeError", "quantize_bias"]


class BiasRangeError(ValueError):
    """A bias value does not fit int32 after scaling; `index` is its flat position, `value` what it would become."""

    def __init__(self, index: int, bias: float, value: float) -> None:
        super().__init__(f"bias[{index}] = {bias!r} becomes {value!r}, outside int32")
        self.index = index
        self.bias = bias
        self.value = value


def quantize_bias(bias: npt.NDArray[Any], scale: npt.NDArray[np.float32]) -> npt.NDArray[np.int32]:
    """Quantize a bias: `rint(float32(b) / scale)`, in float32, ties to even.

    Args:
        bias: any float type, any shape.
        scale: float32, broadcasts over the bias: weight scale * activation scale.

    Returns:
        int32, the bias's shape.

    Raises:
        BiasRangeError: a value is NaN, or outside [-2^31, 2^31 - 1]. The comparison is exact: 2147483648.0, which
            float32 cannot tell from 2^31 - 1, is refused.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.rint(bias.astype(np.float32) / scale)
    good = (values >= np.float32(-(2.0**31))) & (values < np.float32(2.0**31))
    if not good.all():
        index = int(np.argmin(good.reshape(-1)))
        raise BiasRangeError(index, float(bias.reshape(-1)[index]), float(values.reshape(-1)[index]))
    quantized: npt.NDArray[np.int32] = values.astype(np.int32).reshape(bias.shape)
    return quantized
