"""Written twins, read back as they are, integers too: for the checker, for verification and for running them.

Nothing of what writes them is used here but the formats, so that a mistake there shows.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.errors import ModelFileError
from twinquant.wire import FIXED32, FIXED64, LENGTH_DELIMITED, VARINT, WireError, fields, read_varint
from twinquant_caffe.prototxt import Message, parse_prototxt
from twinquant_caffe.schema import (
    BLOB_LENGTHS,
    BLOB_SHAPE,
    DATA,
    DOUBLE_DATA,
    INT8_DATA,
    INT32_DATA,
    LAYER_BLOBS,
    LAYER_NAME,
    LAYER_TYPE,
    NET_LAYER,
    NET_OLD_LAYERS,
    QUANT_PARAM,
    SHAPE_DIM,
    UINT64_DATA,
)
from twinquant_caffe.sources import PROTOTXT, partner_paths
from twinquant_caffe.values import BLOCK

__all__ = ["FIELD_NAMES", "WrittenBlob", "WrittenLayer", "WrittenTwin", "read_written"]

FIELD_NAMES = {
    DATA: "data",
    DOUBLE_DATA: "double_data",
    INT8_DATA: "int8_data",
    INT32_DATA: "int32_data",
    UINT64_DATA: "uint64_data",
}
"""The fields of BlobProto that hold values."""

_FIXED = {DATA: (FIXED32, 4, "<f4"), DOUBLE_DATA: (FIXED64, 8, "<f8")}
_VARINTS: Mapping[int, tuple[int, type[np.generic]]] = {INT32_DATA: (32, np.int32), UINT64_DATA: (64, np.uint64)}


@dataclass(frozen=True, slots=True)
class WrittenBlob:
    """One parameter of a layer, as it is stored.

    Attributes:
        shape: the lengths of `shape`; None: it has none.
        legacy: it has num, channels, height or width.
        runs: where its values lie in the file: (first byte, byte behind the last), by the number of BlobProto's field.
        path: the file.
    """

    shape: tuple[int, ...] | None
    legacy: tuple[int, ...]
    runs: Mapping[int, tuple[tuple[int, int], ...]]
    path: Path

    @property
    def lengths(self) -> tuple[int, ...]:
        """The shape, of either form."""
        return self.legacy if self.shape is None else self.shape

    def values(self, field: int) -> npt.NDArray[Any]:
        """Return the values of one of its fields: float32, float64, int8, int32 or uint64, flat.

        Raises:
            ModelFileError: they are not encoded as such.
        """
        with self.path.open("rb") as file:
            encoded = b"".join(_read(file, start, stop) for start, stop in self.runs.get(field, ()))
        if field == INT8_DATA:
            return np.frombuffer(encoded, np.int8)
        if field in _FIXED:
            return np.frombuffer(encoded, _FIXED[field][2])
        return self._varints(encoded, *_VARINTS[field])

    def blocks(self, field: int) -> Iterator[npt.NDArray[Any]]:
        """Yield the values of a field of float32, float64 or int8, flat, a block at a time."""
        width, dtype = (_FIXED[field][1:]) if field in _FIXED else (1, "i1")
        with self.path.open("rb") as file:
            for start, stop in self.runs.get(field, ()):
                for place in range(start, stop, BLOCK * width):
                    yield np.frombuffer(_read(file, place, min(place + BLOCK * width, stop)), dtype)

    def count(self, field: int) -> int:
        """Return how many values one of its fields holds."""
        if field in _VARINTS:
            return self.values(field).size
        width = _FIXED[field][1] if field in _FIXED else 1
        return sum(stop - start for start, stop in self.runs.get(field, ())) // width

    def _varints(self, encoded: bytes, bits: int, dtype: type[np.generic]) -> npt.NDArray[Any]:
        numbers: list[int] = []
        position = 0
        try:
            while position < len(encoded):
                value, position = read_varint(encoded, position, len(encoded))
                numbers.append(value & ((1 << bits) - 1))
        except WireError as error:
            raise ModelFileError(f"caffemodel {str(self.path)!r}: packed integers are cut off: {error}") from error
        unsigned = np.array(numbers, np.uint64 if bits == 64 else np.uint32)
        return unsigned.view(dtype)


@dataclass(frozen=True, slots=True)
class WrittenLayer:
    """A layer of a caffemodel.

    Attributes:
        name: its name.
        type: its type.
        blobs: its parameters.
        quant_param: its encoded quant_param; None: it has none.
    """

    name: str
    type: str
    blobs: tuple[WrittenBlob, ...]
    quant_param: bytes | None = None


@dataclass(frozen=True)
class WrittenTwin:
    """The two files of a twin.

    Attributes:
        prototxt: the path of the prototxt.
        message: what it holds.
        caffemodel: the path of the caffemodel.
        stored: the caffemodel's layers, in file order.
        old_layers: the caffemodel has layers of the old kind.
    """

    prototxt: Path
    message: Message
    caffemodel: Path
    stored: tuple[WrittenLayer, ...]
    old_layers: bool = False

    def blobs(self, layer: str) -> tuple[WrittenBlob, ...]:
        """Return the parameters that the caffemodel holds for a layer; none if it does not know the layer."""
        return self._blobs.get(layer, ())

    @cached_property
    def _blobs(self) -> Mapping[str, tuple[WrittenBlob, ...]]:
        """The parameters by the name of their layer: those of the first one, where several are called alike."""
        return {stored.name: stored.blobs for stored in reversed(self.stored)}


def _caffemodel_of(prototxt: Path) -> Path:
    if prototxt.suffix.lower() != PROTOTXT:
        raise ModelFileError(f"{str(prototxt)!r}: give the {PROTOTXT} file; its caffemodel is found beside it")
    places = partner_paths(prototxt)
    for place in places:
        if place.is_file():
            return place
    names = " or ".join(repr(place.name) for place in places)
    raise ModelFileError(f"the caffemodel of {str(prototxt)!r} is missing: {names} is expected beside it")


def read_written(prototxt: Path, caffemodel: Path | None = None) -> WrittenTwin:
    """Read a twin; values stay in the file.

    Args:
        prototxt: its prototxt.
        caffemodel: its caffemodel; None: the one that belongs to it by its name.

    Raises:
        ModelFileError: a file is missing, cannot be read or is damaged.
    """
    message = parse_prototxt(prototxt)
    path = _caffemodel_of(prototxt) if caffemodel is None else caffemodel
    try:
        # The wire format is walked over a map of the file, of which only the fields' headers are touched.
        stored = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        layers, old = _layers(_Bytes(stored), path)
    except FileNotFoundError as error:
        raise ModelFileError(f"caffemodel {str(path)!r} does not exist; check the path") from error
    except (WireError, UnicodeDecodeError) as error:
        raise ModelFileError(f"caffemodel {str(path)!r} is truncated or no caffemodel: {error}") from error
    except (OSError, ValueError) as error:
        raise ModelFileError(f"caffemodel {str(path)!r} cannot be read: {error}") from error
    return WrittenTwin(prototxt, message, path, tuple(layers), old)


class _Bytes:
    """The bytes of a mapped file as plain numbers."""

    def __init__(self, array: npt.NDArray[np.uint8]) -> None:
        self._array = array
        self.size = array.size

    def __getitem__(self, index: int, /) -> int:
        return int(self._array[index])

    def bytes(self, start: int, stop: int) -> bytes:
        return self._array[start:stop].tobytes()


def _layers(data: _Bytes, path: Path) -> tuple[list[WrittenLayer], bool]:
    layers: list[WrittenLayer] = []
    old = False
    for number, wire_type, _, body, stop in fields(data, 0, data.size):
        old = old or number == NET_OLD_LAYERS
        if (number, wire_type) == (NET_LAYER, LENGTH_DELIMITED):
            layers.append(_layer(data, body, stop, path))
    return layers, old


def _layer(data: _Bytes, start: int, end: int, path: Path) -> WrittenLayer:
    texts = {LAYER_NAME: "", LAYER_TYPE: ""}
    blobs: list[WrittenBlob] = []
    quant_param: bytes | None = None
    for number, wire_type, _, body, stop in fields(data, start, end):
        if wire_type != LENGTH_DELIMITED:
            continue
        if number in texts:
            texts[number] = data.bytes(body, stop).decode("utf-8", "surrogateescape")
        elif number == LAYER_BLOBS:
            blobs.append(_blob(data, body, stop, path))
        elif number == QUANT_PARAM:
            quant_param = data.bytes(body, stop)
    return WrittenLayer(texts[LAYER_NAME], texts[LAYER_TYPE], tuple(blobs), quant_param)


def _blob(data: _Bytes, start: int, end: int, path: Path) -> WrittenBlob:
    shape: tuple[int, ...] | None = None
    legacy: dict[int, int] = {}
    runs: dict[int, list[tuple[int, int]]] = {}
    for number, wire_type, _, body, stop in fields(data, start, end):
        if number in BLOB_LENGTHS and wire_type == VARINT:
            legacy[number] = read_varint(data, body, stop)[0]
        elif (number, wire_type) == (BLOB_SHAPE, LENGTH_DELIMITED):
            shape = (*(shape or ()), *_dims(data, body, stop))
        elif number in FIELD_NAMES and (wire_type == LENGTH_DELIMITED or wire_type == _FIXED.get(number, (0,))[0]):
            runs.setdefault(number, []).append((body, stop))
    lengths = tuple(legacy.get(number, 0) for number in BLOB_LENGTHS) if legacy else ()
    return WrittenBlob(shape, lengths, {number: tuple(places) for number, places in runs.items()}, path)


def _dims(data: _Bytes, start: int, end: int) -> Iterator[int]:
    """Yield the lengths of a BlobShape, packed or not."""
    for number, wire_type, _, body, stop in fields(data, start, end):
        position = body
        while number == SHAPE_DIM and wire_type in (LENGTH_DELIMITED, VARINT) and position < stop:
            value, position = read_varint(data, position, stop)
            yield value - (1 << 64) if value >> 63 else value


def _read(file: Any, start: int, stop: int) -> bytes:
    file.seek(start)
    content: bytes = file.read(stop - start)
    return content
