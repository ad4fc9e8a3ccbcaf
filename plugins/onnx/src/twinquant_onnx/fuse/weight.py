"""Weights that are multiplied by factors per output channel while they are read."""

from __future__ import annotations

from math import prod

import numpy as np
import numpy.typing as npt

from twinquant.errors import ModelContentError
from twinquant.numerics import BLOCK_ELEMENTS
from twinquant_onnx.tensors import Bytes, RandomAccess

__all__ = ["FusedWeight"]


class FusedWeight(RandomAccess):
    """A weight times one factor per output channel: computed for whatever part is read, never whole in memory.

    Attributes:
        nbytes: size of the weight, which is the unfused one's.
    """

    def __init__(
        self,
        source: RandomAccess,
        dtype: npt.DTypeLike,
        shape: tuple[int, ...],
        scale: npt.NDArray[np.float64],
        *,
        transposed: bool,
        group: int,
        label: str,
    ) -> None:
        """Describe the work; nothing is read yet.

        Args:
            source: the bytes of the weight.
            dtype: its type: float16, float32 or float64.
            shape: its dimensions: `[out, in / group, ...]`, transposed `[in, out / group, ...]`.
            scale: float64 `(out,)`, finite: the factors.
            transposed: which of the two.
            group: number of groups.
            label: what an error calls the weight, such as `layer 'conv1': the weight 'w'`.
        """
        self._source = source
        self._dtype = np.dtype(dtype)
        # float16 is computed in float32: products are rounded once.
        self._scale = scale.astype(np.promote_types(self._dtype, np.float32))
        self._label = label
        self._columns = shape[1] if transposed else 1
        self._group_rows = shape[0] // group if transposed else 1
        self._run = prod(shape[2:]) if transposed else prod(shape[1:])
        self.nbytes = prod(shape) * self._dtype.itemsize

    def read_into(self, start: int, out: Bytes) -> None:
        """Fill `out` with the bytes of the fused weight from `start` on.

        Raises:
            ModelContentError: a product does not fit into float16.
            ModelFileError: the file of the weight is shorter than it was.
        """
        size = self._dtype.itemsize
        first, last = start // size, -(-(start + out.size) // size)
        if start % size == 0 and out.size % size == 0:
            self._fill(first, out)
            return
        whole = np.empty((last - first) * size, np.uint8)
        self._fill(first, whole)
        skipped = start - first * size
        out[:] = whole[skipped : skipped + out.size]

    def close(self) -> None:
        """Release the unfused weight; the next read opens it again."""
        self._source.close()

    def _fill(self, first: int, out: Bytes) -> None:
        """Fill `out` with whole elements, the first of which is element `first` of the weight."""
        self._source.read_into(first * self._dtype.itemsize, out)
        values = out.view(self._dtype)
        for start in range(0, values.size, BLOCK_ELEMENTS):
            part = values[start : start + BLOCK_ELEMENTS]
            factors = self._factors(first + start, part.size)
            if self._dtype == factors.dtype:
                np.multiply(part, factors, out=part)
            else:
                self._multiply_narrow(part, factors)

    def _multiply_narrow(self, part: npt.NDArray[np.floating], factors: npt.NDArray[np.floating]) -> None:
        finite = np.isfinite(part)
        with np.errstate(over="ignore"):
            part[:] = part * factors
        if not np.isfinite(part[finite]).all():
            raise ModelContentError(
                f"{self._label} overflows {self._dtype.name} when the normalization behind the layer is folded into "
                "it: list the layer in skip_fusion_layers, or convert the model to float32"
            )

    def _factors(self, first: int, count: int) -> npt.NDArray[np.floating]:
        """Return the factors of `count` elements from element `first` on."""
        first_run, last_run = first // self._run, (first + count - 1) // self._run
        runs = np.arange(first_run, last_run + 1)
        lengths = np.full(runs.size, self._run)
        lengths[0] -= first - first_run * self._run
        lengths[-1] -= (last_run + 1) * self._run - (first + count)
        row, column = np.divmod(runs, self._columns)
        return np.repeat(self._scale[row // self._group_rows * self._columns + column], lengths)
