"""Weights that are quantized while they are written: no weight is ever whole in memory."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from twinquant.errors import ModelContentError
from twinquant.numerics import BLOCK_ELEMENTS, pack_int4, pack_int4_along, rectangular_blocks, round_weight_in_place
from twinquant_onnx.tensors import Bytes, RandomAccess, TensorBytes

__all__ = ["Encoding", "QuantizedWeight", "WeightLayout"]

Float32Array = npt.NDArray[np.float32]

TRANSPOSE_BYTES = 1 << 24
"""Size of the buffer that a transposed weight passes through: the wider it is, the fewer and longer the reads."""

_SOURCE_DTYPES: dict[int, npt.DTypeLike] = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.FLOAT16: np.float16,
    onnx.TensorProto.DOUBLE: np.float64,
    onnx.TensorProto.BFLOAT16: np.uint16,
}


class WeightLayout(Enum):
    """Where a stored weight has its output and its input channels."""

    OUTPUT_FIRST = "[out, in, ...]: Conv, Gemm with transB = 1"
    INPUT_FIRST = "[in, out / group, ...]: ConvTranspose, MatMul, Gemm with transB = 0"
    RECURRENT = "[1, gate rows, in]: LSTM, GRU"


class Encoding(Enum):
    """How the quantized values are stored."""

    INT8 = "one int8 a value"
    FLOAT = "the integers as float32"
    DEQUANTIZED = "integer * scale as float32"
    PACKED_INT4 = "two values in an int8, paired along the input channels; that dimension is halved"
    ONNX_INT4 = "ONNX's INT4 type: pairs in memory order, dimensions unchanged"


class QuantizedWeight(TensorBytes):
    """The quantized form of a weight, computed block by block while it is written.

    Attributes:
        dims: dimensions of the result.
        data_type: ONNX element type of the result.
        nbytes: size of the result.
    """

    def __init__(
        self,
        source: RandomAccess,
        source_type: int,
        shape: tuple[int, ...],
        scale: Float32Array,
        num_bits: int,
        *,
        layout: WeightLayout,
        encoding: Encoding,
        label: str,
        transpose: bool = False,
    ) -> None:
        """Describe the work; nothing is read yet.

        Args:
            source: the bytes of the float weight.
            source_type: its ONNX element type: FLOAT, FLOAT16, DOUBLE or BFLOAT16.
            shape: its dimensions, as stored.
            scale: float32 `(n,)`, > 0: n = 1 for the whole weight, else one per output channel (ConvTranspose: group by
                group); RECURRENT: one per row or one per gate.
            num_bits: 4 to 8; 4 for the INT4 encodings.
            layout: what the dimensions mean.
            encoding: how the result is stored.
            label: what an error calls the weight, such as `layer 'conv1': the weight 'w'`.
            transpose: store the result with its two dimensions swapped; `shape` has rank 2 and is OUTPUT_FIRST.
        """
        self._source = source
        self._source_dtype = np.dtype(_SOURCE_DTYPES[source_type])
        self._num_bits = num_bits
        self._encoding = encoding
        self._label = label
        self._transpose = transpose
        self._scale = _ScaleTable(shape, scale, layout)
        self._view = self._scale.view
        self._input_axis = 0 if layout is WeightLayout.INPUT_FIRST else 1
        self.dims = _result_dims(shape, layout, encoding, transpose)
        self.data_type, bits = _STORED_AS[encoding]
        self.nbytes = (prod(self.dims) * bits + 7) // 8

    def blocks(self) -> Iterator[Bytes]:
        """Yield the quantized bytes; see `TensorBytes.blocks`.

        Raises:
            ModelContentError: the weight holds NaN or infinity.
            ModelFileError: the file of the float weight is shorter than it was.
        """
        try:
            if self.nbytes:
                yield from self._transposed() if self._transpose else self._in_order()
        finally:
            self._source.close()

    def _in_order(self) -> Iterator[Bytes]:
        pair_axis = self._input_axis if self._encoding is Encoding.PACKED_INT4 else None
        reader = _Reader(self._source, self._source_dtype)
        start, odd = 0, np.empty(0, np.int8)
        for where in rectangular_blocks(self._view, step=2, step_axis=pair_axis):
            shape = tuple(s.stop - s.start for s in where)
            values = reader.read(start, prod(shape)).reshape(shape)
            scale = self._scale.part(where[0], where[1])
            self._round(values, scale)
            start += values.size
            if self._encoding is Encoding.FLOAT:
                yield _as_bytes(values)
            elif self._encoding is Encoding.DEQUANTIZED:
                yield _as_bytes(np.multiply(values, scale, out=values))
            elif self._encoding is Encoding.ONNX_INT4:
                flat = np.concatenate([odd, values.reshape(-1).astype(np.int8)])
                even = flat.size if start == prod(self._view) else flat.size // 2 * 2
                odd = flat[even:]
                yield pack_int4(flat[:even])
            else:
                yield _as_bytes(self._integers(values))

    def _transposed(self) -> Iterator[Bytes]:
        """Yield the result transposed: strips of columns, each gathered as integers from pieces of all rows."""
        rows, columns, _ = self._view
        packed = 2 if self._encoding is Encoding.PACKED_INT4 else 1
        width = min(columns, _strip_width(rows))
        buffer = np.empty((width // packed, rows), np.int8)
        reader = _Reader(self._source, self._source_dtype)
        scale_of_rows = self._scale.part(slice(0, rows), slice(0, 1))[:, 0, 0]
        step = max(2, BLOCK_ELEMENTS // rows // 2 * 2)
        for left in range(0, columns, width):
            count = min(width, columns - left)
            strip = buffer[: count // packed]
            height = max(1, BLOCK_ELEMENTS // count)
            for top in range(0, rows, height):
                bottom = min(top + height, rows)
                values = reader.read_pieces(top * columns + left, count, bottom - top, columns)
                values = values.reshape(bottom - top, count, 1)
                self._round(values, self._scale.part(slice(top, bottom), slice(left, left + count)))
                strip[:, top:bottom] = self._integers(values)[:, :, 0].T
            for first in range(0, len(strip), step):
                piece = strip[first : first + step]
                if self._encoding is Encoding.FLOAT:
                    yield _as_bytes(piece.astype(np.float32))
                elif self._encoding is Encoding.DEQUANTIZED:
                    yield _as_bytes(piece * scale_of_rows)
                else:
                    yield pack_int4(piece) if self._encoding is Encoding.ONNX_INT4 else _as_bytes(piece)

    def _round(self, values: Float32Array, scale: Float32Array) -> None:
        if not round_weight_in_place(values, scale, self._num_bits):
            raise ModelContentError(
                f"{self._label} holds NaN or infinity (as float32), which cannot be quantized: "
                "fix the model, or remove the layer from the record"
            )

    def _integers(self, values: Float32Array) -> npt.NDArray[np.int8]:
        integers = values.astype(np.int8)
        return pack_int4_along(integers, self._input_axis) if self._encoding is Encoding.PACKED_INT4 else integers


def _strip_width(rows: int) -> int:
    """Return how many columns are gathered at once: an even number, so that INT4 pairs stay together."""
    width = max(2, TRANSPOSE_BYTES // rows // 2 * 2)
    # Rows of a strip that lie a multiple of 64 bytes apart share few cache sets: transposing takes five times longer.
    return width // 64 * 64 - 32 if width >= 64 else width


class _Reader:
    """Reads elements of a float weight and widens them to float32; the result is valid until the next call."""

    def __init__(self, source: RandomAccess, dtype: np.dtype[Any]) -> None:
        self._source = source
        self._raw = np.empty(0, dtype)
        self._values = np.empty(0, np.float32)

    def read(self, start: int, count: int) -> Float32Array:
        """Return the elements from `start` on: float32 `(count,)`."""
        return self.read_pieces(start, count, 1, count)

    def read_pieces(self, start: int, length: int, pieces: int, stride: int) -> Float32Array:
        """Return several pieces, one every `stride` elements: float32 `(pieces * length,)`."""
        count = pieces * length
        if count > self._values.size:
            self._values = np.empty(count, np.float32)
            self._raw = self._values if self._raw.dtype == np.float32 else np.empty(count, self._raw.dtype)
        raw, values = self._raw[:count], self._values[:count]
        size, data = raw.itemsize, raw.view(np.uint8)
        if length == stride:
            self._source.read_into(start * size, data)
        else:
            for piece in range(pieces):
                self._source.read_into(
                    (start + piece * stride) * size, data[piece * length * size : (piece + 1) * length * size]
                )
        if raw.dtype == np.uint16:
            np.left_shift(raw, 16, out=values.view(np.uint32), dtype=np.uint32)
        elif raw.dtype != np.float32:
            with np.errstate(over="ignore"):
                np.copyto(values, raw, casting="same_kind")
        return values


class _ScaleTable:
    """The scale of every element of a weight, without an array of the weight's size.

    Attributes:
        view: the weight seen as (rows, columns, rest); input channels are the rows or the columns.
    """

    def __init__(self, shape: tuple[int, ...], scale: Float32Array, layout: WeightLayout) -> None:
        rows, columns, *rest = shape[1:] if layout is WeightLayout.RECURRENT else shape
        per_column = columns if layout is WeightLayout.INPUT_FIRST and scale.size > 1 else 1
        groups = scale.size // per_column
        if groups * per_column != scale.size or rows % groups:
            raise ValueError(f"{scale.size} scales do not fit a weight of shape {shape} and layout {layout.name}")
        self.view = (rows, columns, prod(rest))
        self._table = scale.astype(np.float32, copy=False).reshape(groups, per_column, 1)
        self._group_rows = rows // groups

    def part(self, rows: slice, columns: slice) -> Float32Array:
        """Return the scale of a block, float32, broadcasting over (rows, columns, rest)."""
        group = np.arange(rows.start, rows.stop) // self._group_rows
        if group[0] == group[-1]:
            group = group[:1]
        return self._table[group, columns if self._table.shape[1] > 1 else slice(None)]


_STORED_AS: dict[Encoding, tuple[int, int]] = {
    Encoding.INT8: (onnx.TensorProto.INT8, 8),
    Encoding.FLOAT: (onnx.TensorProto.FLOAT, 32),
    Encoding.DEQUANTIZED: (onnx.TensorProto.FLOAT, 32),
    Encoding.PACKED_INT4: (onnx.TensorProto.INT8, 8),
    Encoding.ONNX_INT4: (onnx.TensorProto.INT4, 4),
}
"""ONNX element type and bits of one stored element."""


def _result_dims(shape: tuple[int, ...], layout: WeightLayout, encoding: Encoding, transpose: bool) -> tuple[int, ...]:
    dims = list(shape)
    if encoding is Encoding.PACKED_INT4:
        dims[_INPUT_AXIS[layout]] //= 2
    return tuple(reversed(dims) if transpose else dims)


_INPUT_AXIS = {WeightLayout.OUTPUT_FIRST: 1, WeightLayout.INPUT_FIRST: 0, WeightLayout.RECURRENT: 2}


def _as_bytes(values: npt.NDArray[Any]) -> Bytes:
    return np.ascontiguousarray(values).reshape(-1).view(np.uint8)
