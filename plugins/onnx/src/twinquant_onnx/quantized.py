"""Weights that are quantized while they are written, in blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from twinquant.errors import ModelContentError
from twinquant.numerics import BLOCK_ELEMENTS, pack_int4, pack_int4_along, rectangular_blocks, round_weight_in_place
from twinquant_onnx.integers import IntegerMemory
from twinquant_onnx.tensors import Bytes, RandomAccess, TensorBytes

__all__ = ["Encoding", "QuantizedWeight", "WeightLayout"]

Float32Array = npt.NDArray[np.float32]
Int8Array = npt.NDArray[np.int8]
Block = tuple[tuple[slice, ...], npt.NDArray[Any]]
"""Where a block lies in the result, seen as (rows, columns, rest), and its integers: int8, or float32 of them."""

STRIP_BYTES = 1 << 24
"""Size of the strip of columns that a transposed weight passes through: the wider, the longer the reads."""

_BAND_ROWS = 256
_BAND_BYTES = 1 << 22
"""Rows are collected before they are transposed, so that whole cache lines are written."""

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


_INPUT_AXIS = {WeightLayout.OUTPUT_FIRST: 1, WeightLayout.INPUT_FIRST: 0, WeightLayout.RECURRENT: 2}


class Encoding(Enum):
    """How the quantized values are stored."""

    INT8 = "one int8 a value"
    FLOAT = "the integers as float32"
    DEQUANTIZED = "integer * scale as float32"
    ROUNDED = "integer * scale in the weight's own type: the float weight, on the grid of its integers"
    PACKED_INT4 = "two values in an int8, paired along the input channels; that dimension is halved"
    ONNX_INT4 = "ONNX's INT4 type: pairs in memory order, dimensions unchanged"


_STORED_AS: dict[Encoding, int] = {
    Encoding.INT8: onnx.TensorProto.INT8,
    Encoding.FLOAT: onnx.TensorProto.FLOAT,
    Encoding.DEQUANTIZED: onnx.TensorProto.FLOAT,
    Encoding.PACKED_INT4: onnx.TensorProto.INT8,
    Encoding.ONNX_INT4: onnx.TensorProto.INT4,
}
"""ONNX element type of the result; ROUNDED keeps the weight's."""

_BITS: dict[int, int] = {
    onnx.TensorProto.INT4: 4,
    onnx.TensorProto.INT8: 8,
    onnx.TensorProto.FLOAT: 32,
    onnx.TensorProto.FLOAT16: 16,
    onnx.TensorProto.DOUBLE: 64,
    onnx.TensorProto.BFLOAT16: 16,
}
"""Bits of one stored element."""


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
        memory: IntegerMemory | None = None,
        name: str = "",
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
            memory: where the integers are kept for the other twin, and looked for; None keeps nothing.
            name: what the float weight is called there: one name, one content.
        """
        self._source = source
        self._source_dtype = np.dtype(_SOURCE_DTYPES[source_type])
        self._scale = _ScaleTable(shape, scale, layout)
        self._num_bits = num_bits
        self._encoding = encoding
        self._label = label
        self._transpose = transpose
        self._memory = memory or IntegerMemory(0)
        self._key = (name, layout, transpose, num_bits, scale.tobytes())
        dims = list(reversed(shape) if transpose else shape)
        if transpose:
            layout = WeightLayout.INPUT_FIRST
        self._result = _ScaleTable(tuple(dims), scale, layout)
        self._pair_axis: int | None = None
        if encoding is Encoding.PACKED_INT4:
            dims[_INPUT_AXIS[layout]] //= 2
            self._pair_axis = 0 if layout is WeightLayout.INPUT_FIRST else 1
        self.dims = tuple(dims)
        self.data_type = _STORED_AS.get(encoding, source_type)
        self.nbytes = (prod(dims) * _BITS[self.data_type] + 7) // 8

    def blocks(self) -> Iterator[Bytes]:
        """Yield the quantized bytes; see `TensorBytes.blocks`.

        Raises:
            ModelContentError: the weight holds NaN or infinity.
            ModelFileError: the file of the float weight is shorter than it was.
        """
        if not self.nbytes:
            return
        try:
            if self._encoding is Encoding.ONNX_INT4:
                yield from _paired(values.astype(np.int8) for _, values in self._integers())
            else:
                for where, values in self._integers():
                    yield np.ascontiguousarray(self._encode(where, values)).reshape(-1).view(np.uint8)
        finally:
            self._source.close()

    def _encode(self, where: tuple[slice, ...], values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        if self._encoding is Encoding.FLOAT:
            return values.astype(np.float32, copy=False)
        if self._encoding in (Encoding.DEQUANTIZED, Encoding.ROUNDED):
            dequantized: npt.NDArray[Any] = np.multiply(values, self._result.part(where), dtype=np.float32)
            return dequantized.astype(onnx.helper.tensor_dtype_to_np_dtype(self.data_type), copy=False)
        integers = values.astype(np.int8, copy=False)
        return integers if self._pair_axis is None else pack_int4_along(integers, self._pair_axis)

    def _integers(self) -> Iterator[Block]:
        """Yield the integers in the order of the result: those in memory, or new ones, which are kept if they fit."""
        view = self._result.view
        known = self._memory.take(self._key)
        if known is not None:
            for where in self._cut(view):
                yield where, known.reshape(view)[where]
            return
        kept = np.empty(prod(view), np.int8) if self._memory.has_room(prod(view)) else None
        yield from self._transposed(kept) if self._transpose else self._in_order(kept)
        if kept is not None:
            self._memory.keep(self._key, kept)

    def _in_order(self, kept: Int8Array | None) -> Iterator[Block]:
        reader = _Reader(self._source, self._source_dtype)
        start = 0
        for where in self._cut(self._scale.view):
            values = reader.read(start, prod(s.stop - s.start for s in where))
            self._round(where, values)
            if kept is not None:
                kept[start : start + values.size] = values
            start += values.size
            yield where, values.reshape([s.stop - s.start for s in where])

    def _transposed(self, kept: Int8Array | None) -> Iterator[Block]:
        """Yield the integers transposed: strips of columns, each gathered from pieces of all rows."""
        rows, columns, _ = self._scale.view
        width = columns if kept is not None else min(columns, max(2, STRIP_BYTES // rows // 2 * 2))
        buffer = (np.empty(width * rows, np.int8) if kept is None else kept).reshape(width, rows, 1)
        reader = _Reader(self._source, self._source_dtype)
        for left in range(0, columns, width):
            right = min(left + width, columns)
            strip = buffer[: right - left]
            self._gather(reader, left, right, strip)
            step = max(2, BLOCK_ELEMENTS // rows // 2 * 2)
            for first in range(left, right, step):
                where = slice(first, min(first + step, right)), slice(0, rows), slice(0, 1)
                yield where, strip[first - left : first - left + step]

    def _gather(self, reader: _Reader, left: int, right: int, strip: Int8Array) -> None:
        """Fill a strip, int8 (right - left, rows, 1), with the columns from `left` to `right`."""
        rows, columns, _ = self._scale.view
        count = right - left
        height = max(1, BLOCK_ELEMENTS // count)
        band_rows = max(height, min(_BAND_ROWS, _BAND_BYTES // count))
        # Rows that lie a multiple of 64 bytes apart share few cache sets: transposing then takes five times longer.
        band = np.empty((band_rows, count // 64 * 64 + 96, 1), np.int8)[:, :count]
        for top in range(0, rows, band_rows):
            bottom = min(top + band_rows, rows)
            for first in range(top, bottom, height):
                last = min(first + height, bottom)
                values = reader.read_pieces(first * columns + left, count, last - first, columns)
                self._round((slice(first, last), slice(left, right), slice(0, 1)), values)
                band[first - top : last - top] = values.reshape(last - first, count, 1)
            strip[:, top:bottom] = band[: bottom - top].transpose(1, 0, 2)

    def _cut(self, view: tuple[int, ...]) -> Iterator[tuple[slice, ...]]:
        return rectangular_blocks(view, step=2, step_axis=self._pair_axis)

    def _round(self, where: tuple[slice, ...], values: Float32Array) -> None:
        """Round a flat block of the stored weight in place."""
        block = values.reshape([s.stop - s.start for s in where])
        if not round_weight_in_place(block, self._scale.part(where), self._num_bits):
            raise ModelContentError(
                f"{self._label} holds NaN or infinity (as float32), which cannot be quantized: "
                "fix the model, or remove the layer from the record"
            )


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
        if length == stride:
            self._source.read_into(start * raw.itemsize, raw.view(np.uint8))
        else:
            for number, piece in enumerate(raw.view(np.uint8).reshape(pieces, -1)):
                self._source.read_into((start + number * stride) * raw.itemsize, piece)
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

    def part(self, where: tuple[slice, ...]) -> Float32Array:
        """Return the scale of a block, float32, broadcasting over (rows, columns, rest)."""
        rows, columns, _ = where
        groups, per_column, _ = self._table.shape
        if groups == 1:
            return self._table if per_column == 1 else self._table[:, columns]
        group = rows if self._group_rows == 1 else np.arange(rows.start, rows.stop) // self._group_rows
        return self._table[group, columns if per_column > 1 else slice(None)]


def _paired(blocks: Iterable[Int8Array]) -> Iterator[Bytes]:
    """Pack 4-bit values in memory order; a pair may lie in two blocks."""
    odd = np.empty(0, np.int8)
    for block in blocks:
        values = np.concatenate([odd, block.reshape(-1)])
        odd = values[values.size // 2 * 2 :]
        yield pack_int4(values[: values.size // 2 * 2])
    yield pack_int4(odd)
