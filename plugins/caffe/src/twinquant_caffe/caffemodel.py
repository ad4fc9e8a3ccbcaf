"""Reading a caffemodel by the protobuf wire format: its values stay in the file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from twinquant.errors import ModelFileError, UnsupportedModelError
from twinquant.wire import FIXED32, FIXED64, LENGTH_DELIMITED, VARINT, WireError, fields, read_varint
from twinquant_caffe.net import Blob
from twinquant_caffe.schema import (
    BLOB_LENGTHS,
    BLOB_SHAPE,
    DATA,
    DOUBLE_DATA,
    INT8_DATA,
    INT32_DATA,
    LAYER_BLOBS,
    LAYER_BOTTOM,
    LAYER_NAME,
    LAYER_TOP,
    LAYER_TYPE,
    NET_LAYER,
    NET_OLD_LAYERS,
    SHAPE_DIM,
    UINT64_DATA,
)
from twinquant_caffe.values import FileValues, Span

__all__ = ["Caffemodel", "StoredLayer", "read_caffemodel"]

_RAW_TYPE, _RAW_DATA = 10, 12
"""Fields of BlobProto in NVIDIA's fork: they share numbers with integers of deploy nets."""

_INTEGERS = frozenset({INT8_DATA, INT32_DATA, UINT64_DATA})
_DROPPED = frozenset({6, 9, 11, 13})
"""Gradients: diff, double_diff and the fork's raw_diff_type and raw_diff."""

_FLOATS: dict[int, np.dtype[Any]] = {DATA: np.dtype("<f4"), DOUBLE_DATA: np.dtype("<f8")}
_FLOAT_WIRE_TYPES = {DATA: {LENGTH_DELIMITED, FIXED32}, DOUBLE_DATA: {LENGTH_DELIMITED, FIXED64}}
_RAW_TYPES = {0: "DOUBLE", 1: "FLOAT", 2: "FLOAT16", 3: "INT", 4: "UINT"}
_RAW_FLOATS = {0: DOUBLE_DATA, 1: DATA}

_WINDOW_BYTES = 1 << 14

_STRANGERS = {
    b"\x89HDF\r\n": "it is an HDF5 file; load the net in Caffe and save it with net.save(), which writes a .caffemodel",
    b"version https://git-lfs": "it is a pointer of Git LFS; fetch the file itself with `git lfs pull`",
    b"<": "it is a web page; the download went wrong",
}
_HEAD_BYTES = 1024
_TEXT = frozenset(b"\t\n\r") | frozenset(range(0x20, 0x7F))


@dataclass(frozen=True, slots=True, eq=False)
class StoredLayer:
    """A layer of a caffemodel.

    Attributes:
        name: its name.
        blobs: its parameters.
        rest: its encoded fields but name, type, bottom, top and blobs.
    """

    name: str
    blobs: tuple[Blob, ...]
    rest: bytes


@dataclass(frozen=True, slots=True, eq=False)
class Caffemodel:
    """What a caffemodel holds.

    Attributes:
        layers: in file order.
        rest: the encoded fields that are no layers.
    """

    layers: tuple[StoredLayer, ...]
    rest: bytes


@dataclass(frozen=True, slots=True)
class _LayerFields:
    """Where a version of the schema has a layer's fields: of those in `ours`, only name and blobs are read."""

    name: int
    blobs: int
    ours: frozenset[int]
    carries_rest: bool


_OURS = frozenset({LAYER_NAME, LAYER_TYPE, LAYER_BOTTOM, LAYER_TOP, LAYER_BLOBS})
_SCHEMAS = {
    NET_LAYER: _LayerFields(LAYER_NAME, LAYER_BLOBS, _OURS, carries_rest=True),
    NET_OLD_LAYERS: _LayerFields(4, 6, frozenset({2, 3, 4, 5, 6}), carries_rest=False),
}
"""By the number of NetParameter's field. The parameters of old layers have other numbers: they are not carried over."""

_V0_LAYER = 1
"""The field of an old layer that holds a still older one."""


def read_caffemodel(path: Path) -> Caffemodel:
    """Read a caffemodel; the values of its blobs stay in the file.

    Old files, with `layers`, are read too, as far as blobs go.

    Raises:
        ModelFileError: the file cannot be read, is truncated, is no caffemodel, or has blobs whose shapes and values
            disagree.
        UnsupportedModelError: its weights are quantized already, or are of a type that is not float32 or float64; or
            its layers are of the oldest kind.
    """
    where = f"caffemodel {str(path)!r}"
    try:
        with path.open("rb") as file:
            return _Reader(file, path, where).net()
    except FileNotFoundError as error:
        raise ModelFileError(f"{where} does not exist; check the path") from error
    except WireError as error:
        raise ModelFileError(f"{where} is truncated or no caffemodel: {_stranger(path) or error}") from error
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{where} cannot be read: {error}") from error


def _stranger(path: Path) -> str:
    """Say what a file is that is no caffemodel, where its first bytes tell."""
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if known := next((what for start, what in _STRANGERS.items() if head.startswith(start)), ""):
        return known
    if head and _TEXT.issuperset(head):
        return "it is a text file, perhaps a prototxt; give the binary .caffemodel"
    return ""


class _Window:
    """The bytes of a file, of which a small piece at a time is in memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._start = 0
        self._bytes = b""

    def __getitem__(self, index: int, /) -> int:
        place = index - self._start
        if not 0 <= place < len(self._bytes):
            self._start, self._bytes, place = index, self.read(index, index + _WINDOW_BYTES), 0
            if not self._bytes:
                raise WireError(f"the file became shorter than {index} bytes while it was read")
        return self._bytes[place]

    def read(self, start: int, stop: int) -> bytes:
        self._file.seek(start)
        return self._file.read(stop - start)


class _Reader:
    """A pass over a caffemodel."""

    def __init__(self, file: BinaryIO, path: Path, where: str) -> None:
        self._data = _Window(file)
        self._path = path
        self._where = where
        self._size = file.seek(0, 2)

    def net(self) -> Caffemodel:
        layers: dict[int, list[StoredLayer]] = {NET_LAYER: [], NET_OLD_LAYERS: []}
        rest = bytearray()
        for number, wire_type, tag, body, stop in fields(self._data, 0, self._size):
            if number in layers and wire_type == LENGTH_DELIMITED:
                layers[number].append(self._layer(body, stop, _SCHEMAS[number]))
            else:
                rest += self._data.read(tag, stop)
        found = layers[NET_LAYER] or layers[NET_OLD_LAYERS]
        if not found:
            what = _stranger(self._path) or "is it the net's caffemodel?"
            raise ModelFileError(f"{self._where} holds no layer; {what}")
        return Caffemodel(tuple(found), bytes(rest))

    def _layer(self, start: int, end: int, schema: _LayerFields) -> StoredLayer:
        name, rest = "", bytearray()
        blobs: list[tuple[int, int]] = []
        for number, wire_type, tag, body, stop in fields(self._data, start, end):
            if (number, wire_type) == (schema.name, LENGTH_DELIMITED):
                name = self._data.read(body, stop).decode("utf-8", "surrogateescape")
            elif (number, wire_type) == (schema.blobs, LENGTH_DELIMITED):
                blobs.append((body, stop))
            elif number == _V0_LAYER and not schema.carries_rest:
                raise UnsupportedModelError(
                    f"{self._where} has layers of the oldest kind; upgrade it with Caffe's "
                    "`upgrade_net_proto_binary old.caffemodel new.caffemodel`"
                )
            elif number not in schema.ours and schema.carries_rest:
                rest += self._data.read(tag, stop)
        read = (
            self._blob(body, stop, f"{self._where}, layer {name!r}, blob {index}")
            for index, (body, stop) in enumerate(blobs)
        )
        return StoredLayer(name, tuple(read), bytes(rest))

    def _blob(self, start: int, end: int, where: str) -> Blob:
        legacy: dict[int, int] = {}
        shape: list[int] = []
        spans: dict[int, list[Span]] = {}
        integers: dict[int, tuple[int, int]] = {}
        raw_type: int | None = None
        rest = bytearray()
        for number, wire_type, tag, body, stop in fields(self._data, start, end):
            if number in BLOB_LENGTHS and wire_type == VARINT:
                legacy[number] = self._number(body, stop)
            elif (number, wire_type) == (BLOB_SHAPE, LENGTH_DELIMITED):
                shape += self._lengths(body, stop)
            elif (number, wire_type) == (_RAW_TYPE, VARINT):
                raw_type = self._number(body, stop)
            elif wire_type in _FLOAT_WIRE_TYPES.get(number, ()):
                packed = wire_type == LENGTH_DELIMITED
                _extend(spans.setdefault(number, []), number, body, stop, 0 if packed else body - tag, where)
            elif number in _INTEGERS and wire_type == LENGTH_DELIMITED:
                integers[number] = body, stop
            elif number not in _DROPPED:
                rest += self._data.read(tag, stop)
        if raw_type is not None and _RAW_DATA in integers:
            number = _RAW_FLOATS.get(raw_type, 0)
            if not number:
                raise UnsupportedModelError(
                    f"{where}: its values are stored as {_RAW_TYPES.get(raw_type, raw_type)}; weights have to be "
                    "float32, as rounding to 8 bits has to start from the values that were trained. Save the net from "
                    "a Caffe that computes in float32"
                )
            body, stop = integers.pop(_RAW_DATA)
            _extend(spans.setdefault(number, []), number, body, stop, 0, where)
        if integers:
            raise UnsupportedModelError(
                f"{where}: holds integers, so this net is quantized already; give the float net it was made from"
            )
        dims = tuple(legacy.get(number, 0) for number in BLOB_LENGTHS) if legacy else tuple(shape)
        field = DOUBLE_DATA if spans.get(DOUBLE_DATA) else DATA
        values = FileValues(self._path, tuple(spans.get(field, ())), _FLOATS[field])
        _check(dims, values.size, where)
        return Blob(dims, values, legacy=bool(legacy), rest=bytes(rest))

    def _number(self, body: int, stop: int) -> int:
        """Return a signed number."""
        value = read_varint(self._data, body, stop)[0]
        return value - (1 << 64) if value >> 63 else value

    def _lengths(self, start: int, end: int) -> list[int]:
        """Return the lengths of a BlobShape, packed or not."""
        lengths = []
        for number, wire_type, _, body, stop in fields(self._data, start, end):
            if number == SHAPE_DIM and wire_type == VARINT:
                lengths.append(self._number(body, stop))
            elif number == SHAPE_DIM and wire_type == LENGTH_DELIMITED:
                while body < stop:
                    lengths.append(self._number(body, stop))
                    body = read_varint(self._data, body, stop)[1]
        return lengths


def _extend(spans: list[Span], number: int, start: int, stop: int, gap: int, where: str) -> None:
    """Add a run of values; a single one behind others of its kind makes their run longer."""
    width = _FLOATS[number].itemsize
    if (stop - start) % width:
        raise ModelFileError(f"{where}: {stop - start} bytes of values are no multiple of {width}; the file is damaged")
    last = spans[-1] if spans else None
    if gap and last and last.gap == gap and last.offset + last.count * (gap + width) == start - gap:
        spans[-1] = Span(last.offset, last.count + 1, gap)
    elif stop > start:
        spans.append(Span(start - gap, (stop - start) // width, gap))


def _check(shape: tuple[int, ...], size: int, where: str) -> None:
    if any(length < 0 for length in shape) or math.prod(shape) != size:
        what = "no float32 or float64 values" if not size else f"{size} values"
        raise ModelFileError(
            f"{where}: its shape {list(shape)} asks for {math.prod(shape)} values, but it holds {what}; the file is "
            "damaged, or from a fork of Caffe that stores values elsewhere (float16, for example)"
        )
