"""Quantized values of blobs, in the encodings of BlobProto's fields; weights are quantized while they are written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.errors import ModelContentError
from twinquant.numerics import rectangular_blocks, round_weight_in_place
from twinquant.wire import encode_varint
from twinquant_caffe.schema import INT8_DATA
from twinquant_caffe.values import Values

__all__ = ["PackedIntegers", "QuantizedValues", "pack_integers", "scale_table"]

Float32Array = npt.NDArray[np.float32]

_UINT64 = (1 << 64) - 1


@dataclass(frozen=True, slots=True, eq=False)
class QuantizedValues:
    """A weight that is quantized block by block whenever it is written.

    Attributes:
        source: the float weight.
        table: float32 `(groups, columns or 1)`, > 0: its scales, see `scale_table`.
        view: the weight seen as (rows, columns, rest); the rows follow each other group by group.
        field: BlobProto's: INT8_DATA, a byte a value; DATA, the integers as float32.
        label: what an error calls the weight, such as `layer 'conv1': the weight`.
    """

    source: Values
    table: Float32Array
    view: tuple[int, int, int]
    field: int
    label: str

    @property
    def size(self) -> int:
        """How many there are."""
        return prod(self.view)

    @property
    def payload_size(self) -> int:
        """How many bytes the encoded integers take."""
        return self.size * (1 if self.field == INT8_DATA else 4)

    def payload(self) -> Iterator[bytes]:
        """Yield the encoded integers in blocks.

        Raises:
            ModelContentError: the weight holds NaN or infinity.
        """
        dtype = np.dtype(np.int8) if self.field == INT8_DATA else np.dtype("<f4")
        start = 0
        for where in rectangular_blocks(self.view):
            shape = [s.stop - s.start for s in where]
            block = self.source.read(start, start + prod(shape)).reshape(shape)
            if not round_weight_in_place(block, self._scales(where), num_bits=8):
                raise ModelContentError(
                    f"{self.label} holds NaN or infinity (as float32), which cannot be quantized: "
                    "fix the net, or remove the layer from the record"
                )
            start += block.size
            yield block.astype(dtype, copy=False).tobytes()

    def _scales(self, where: tuple[slice, ...]) -> Float32Array:
        """Return the scales of a block, float32, broadcasting over (rows, columns, rest)."""
        rows, columns, _ = where
        groups, per_column = self.table.shape
        group = np.arange(rows.start, rows.stop) // (self.view[0] // groups)
        scales: Float32Array = self.table[group][:, columns if per_column > 1 else slice(None), np.newaxis]
        return scales


def scale_table(scale: Float32Array, *, groups: int | None) -> Float32Array:
    """Arrange weight scales as `QuantizedValues` takes them.

    Args:
        scale: float32 `(n,)`: n = 1 for the whole weight, else one per output channel.
        groups: number of groups of a Deconvolution, whose weight is `(Cin, Cout / groups, ...)` and whose output
            channel is group * (Cout / groups) + column; None: output channels are the rows.

    Returns:
        float32 `(groups, columns or 1)`.
    """
    if groups is None or scale.size == 1:
        return scale.reshape(-1, 1)
    return scale.reshape(groups, -1)


@dataclass(frozen=True, slots=True)
class PackedIntegers:
    """Integers as a packed repeated field holds them.

    Attributes:
        field: BlobProto's: INT32_DATA or UINT64_DATA.
        encoded: one varint a value.
        size: how many there are.
    """

    field: int
    encoded: bytes
    size: int

    @property
    def payload_size(self) -> int:
        """How many bytes the encoded integers take."""
        return len(self.encoded)

    def payload(self) -> Iterator[bytes]:
        """Yield the encoded integers."""
        yield self.encoded


def pack_integers(field: int, values: npt.NDArray[Any]) -> PackedIntegers:
    """Encode int32 or uint64 values; negative ones take ten bytes, as protobuf sign-extends them."""
    encoded = b"".join(encode_varint(int(value) & _UINT64) for value in values.reshape(-1))
    return PackedIntegers(field, encoded, values.size)
