"""Reading and comparing tensors block by block, wherever their bytes are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from twinquant.errors import VerificationError
from twinquant.numerics import unpack_int4, unpack_int4_along
from twinquant_onnx.constants import type_name
from twinquant_onnx.graph import TensorStore
from twinquant_onnx.tensors import ArrayBytes, RandomAccess

__all__ = ["Data", "compare_bytes", "compare_integers", "packed_axis_of"]

_BLOCK = 1 << 18
"""Elements that are compared at once."""

_INTEGER_DTYPES: dict[int, np.dtype[Any]] = {
    onnx.TensorProto.INT8: np.dtype("i1"),
    onnx.TensorProto.INT32: np.dtype("<i4"),
}

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Data:
    """A tensor of one twin together with the store that may hold its bytes."""

    tensor: onnx.TensorProto
    store: TensorStore

    @property
    def dims(self) -> tuple[int, ...]:
        """The tensor's dimensions."""
        return tuple(self.tensor.dims)

    @property
    def type(self) -> str:
        """ONNX's name of the element type."""
        return type_name(self.tensor.data_type)

    def source(self) -> RandomAccess:
        """Return the tensor's bytes as ONNX stores them."""
        stored = self.store.readable(self.tensor)
        if stored is not None:
            return stored
        raw = self.tensor.raw_data or numpy_helper.from_array(numpy_helper.to_array(self.tensor)).raw_data
        return ArrayBytes(np.frombuffer(raw, np.uint8))

    def bytes(self) -> npt.NDArray[np.uint8]:
        """Read all bytes: uint8 `(n,)`."""
        return self.source().read_all()

    def array(self) -> Array:
        """Read the whole tensor as an array; 4-bit integers as int8."""
        count = prod(self.dims)
        if self.tensor.data_type == onnx.TensorProto.INT4:
            return unpack_int4(self.bytes(), count).reshape(self.dims)
        if self.store.get(self.tensor) is None:
            return np.asarray(numpy_helper.to_array(self.tensor))
        dtype = onnx.helper.tensor_dtype_to_np_dtype(self.tensor.data_type)
        return self.bytes().view(dtype).reshape(self.dims)

    def integers(self, packed_axis: int | None = None) -> Array:
        """Read quantized integers: int8, for a bias int32; `packed_axis` is unpacked to its true length."""
        if self.tensor.data_type not in (*_INTEGER_DTYPES, onnx.TensorProto.INT4):
            raise VerificationError(
                f"tensor {self.tensor.name!r} is {self.type}, not an integer type of quantized tensors"
            )
        values = self.array()
        return values if packed_axis is None else unpack_int4_along(values, packed_axis)


def packed_axis_of(deploy: tuple[int, ...], true: tuple[int, ...], axis: int) -> int | None:
    """Return `axis` if the deploy twin's dims are the true ones with that axis halved, else None."""
    halved = (*true[:axis], true[axis] // 2, *true[axis + 1 :]) if axis < len(true) and true[axis] % 2 == 0 else None
    return axis if deploy == halved and deploy != true else None


def compare_bytes(what: str, deploy: Data, fake: Data) -> str | None:
    """Compare two tensors bit for bit; return what disagrees as a sentence, or None."""
    if deploy.tensor.data_type != fake.tensor.data_type:
        return f"{what} is {deploy.type} in the deploy twin and {fake.type} in the fake-quant twin"
    if deploy.dims != fake.dims:
        return f"{what} has dims {list(deploy.dims)} in the deploy twin and {list(fake.dims)} in the fake-quant twin"
    if deploy.tensor.data_type == onnx.TensorProto.STRING:
        same = list(deploy.tensor.string_data) == list(fake.tensor.string_data)
        return None if same else f"{what} holds different strings in the twins"
    with closing(deploy.source()) as one, closing(fake.source()) as other:
        return _compare_blocks(what, one, other)


def _compare_blocks(what: str, one: RandomAccess, other: RandomAccess) -> str | None:
    if one.nbytes != other.nbytes:
        return f"{what} holds {one.nbytes} bytes in the deploy twin and {other.nbytes} in the fake-quant twin"
    left, right = np.empty(min(one.nbytes, 4 * _BLOCK), np.uint8), np.empty(min(one.nbytes, 4 * _BLOCK), np.uint8)
    for start in range(0, one.nbytes, 4 * _BLOCK):
        size = min(4 * _BLOCK, one.nbytes - start)
        one.read_into(start, left[:size])
        other.read_into(start, right[:size])
        if not np.array_equal(left[:size], right[:size]):
            place = start + int(np.argmax(left[:size] != right[:size]))
            return f"{what} differs between the twins, first in byte {place} of {one.nbytes}"
    return None


def compare_integers(what: str, deploy: Data, fake: Data, axis: int | None = None) -> str | None:
    """Compare the deploy twin's integers with the fake-quant twin's integer-valued float32.

    Args:
        what: names the tensor in the sentence.
        deploy: INT8, INT4 or INT32.
        fake: FLOAT.
        axis: the axis along which the deploy twin may hold two 4-bit values in a byte.

    Returns:
        what disagrees as a sentence, or None. Integers beyond 2^24, as only a bias has them, agree with the float32
        that they round to: the fake-quant twin cannot hold more of them.
    """
    if fake.tensor.data_type != onnx.TensorProto.FLOAT:
        return f"{what} is {fake.type} in the fake-quant twin, expected FLOAT"
    if deploy.tensor.data_type not in (*_INTEGER_DTYPES, onnx.TensorProto.INT4):
        return f"{what} is {deploy.type} in the deploy twin, expected an integer type"
    packed = None
    if axis is not None and deploy.tensor.data_type == onnx.TensorProto.INT8:
        packed = packed_axis_of(deploy.dims, fake.dims, axis)
    if packed is None and deploy.dims != fake.dims:
        return f"{what} has dims {list(deploy.dims)} in the deploy twin and {list(fake.dims)} in the fake-quant twin"
    with closing(deploy.source()) as reader, closing(fake.source()) as floats:
        return _compare_values(what, deploy, reader, fake, floats, packed)


def _compare_values(
    what: str, deploy: Data, reader: RandomAccess, fake: Data, floats: RandomAccess, packed: int | None
) -> str | None:
    count = prod(fake.dims)
    expected = _stored_bytes(deploy), 4 * count
    if (reader.nbytes, floats.nbytes) != expected:
        return f"{what} holds {reader.nbytes} and {floats.nbytes} bytes in the twins, expected {expected}"
    start = wrong = 0
    first: tuple[int, float, float] | None = None
    for integers in _integer_blocks(deploy, reader, packed):
        block = np.empty(integers.size, np.dtype("<f4"))
        floats.read_into(4 * start, block.view(np.uint8))
        different = np.flatnonzero(integers.astype(np.float32) != block)
        if different.size and first is None:
            at = int(different[0])
            first = (start + at, float(integers[at]), float(block[at]))
        wrong += different.size
        start += integers.size
    if first is None:
        return None
    place = [int(i) for i in np.unravel_index(first[0], fake.dims)] if fake.dims else []
    return (
        f"{what}: {wrong} of {count} integers differ; at {place} the deploy twin has {first[1]:g}, "
        f"the fake-quant twin {first[2]:g}"
    )


def _stored_bytes(data: Data) -> int:
    count = prod(data.dims)
    if data.tensor.data_type == onnx.TensorProto.INT4:
        return (count + 1) // 2
    return count * _INTEGER_DTYPES[data.tensor.data_type].itemsize


def _integer_blocks(data: Data, source: RandomAccess, packed_axis: int | None) -> Iterator[Array]:
    """Yield a tensor's integers in order, flat, unpacked."""
    count = prod(data.dims)
    if data.tensor.data_type == onnx.TensorProto.INT4:
        for start in range(0, count, _BLOCK):
            size = min(_BLOCK, count - start)
            raw = np.empty((size + 1) // 2, np.uint8)
            source.read_into(start // 2, raw)
            yield unpack_int4(raw, size)
        return
    dtype = _INTEGER_DTYPES[data.tensor.data_type]
    inner = 1 if packed_axis is None else prod(data.dims[packed_axis + 1 :])
    step = max(1, _BLOCK // max(inner, 1)) * inner
    for start in range(0, count, max(step, 1)):
        values = np.empty(min(step, count - start), dtype)
        source.read_into(start * dtype.itemsize, values.view(np.uint8))
        yield values if packed_axis is None else unpack_int4_along(values.reshape(-1, 1, inner), 1).reshape(-1)
