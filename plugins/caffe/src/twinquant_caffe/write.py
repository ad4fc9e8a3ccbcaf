"""Writing a net: a prototxt, and a caffemodel whose values pass through in blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from twinquant.errors import ModelFileError, UnsupportedModelError
from twinquant.wire import encode_varint, header
from twinquant_caffe.net import Blob, CaffeNet, Layer
from twinquant_caffe.prototxt import Field, Message, format_message, make
from twinquant_caffe.schema import (
    BLOB_SHAPE,
    LAYER_BLOBS,
    LAYER_BOTTOM,
    LAYER_NAME,
    LAYER_TOP,
    LAYER_TYPE,
    NET_LAYER,
    SHAPE_DIM,
)

__all__ = ["write_net"]

MODEL_BYTES = (1 << 31) - 1
"""Protobuf, and with it Caffe, reads no larger message."""

_BUFFER_BYTES = 1 << 16


def write_net(net: CaffeNet, folder: Path, prototxt_name: str, weights_name: str) -> tuple[Path, Path]:
    """Write a net into an existing folder; what is computed lazily is computed now.

    Args:
        net: what to write. Name, type, bottoms and tops of a layer replace those of its block where they differ.
        folder: where the files go. Files of the same names are replaced.
        prototxt_name: of the prototxt.
        weights_name: of the caffemodel.

    Returns:
        The paths of the prototxt and of the caffemodel.

    Raises:
        ModelFileError: the caffemodel the values come from is shorter than it was.
        UnsupportedModelError: the caffemodel would be larger than Caffe can read.
        OSError: writing fails.
    """
    prototxt, weights = folder / prototxt_name, folder / weights_name
    prototxt.write_bytes(format_message(_tree(net)).encode("utf-8", "surrogateescape"))
    pieces = [net.rest, *(piece for layer in net.layers for piece in _encoded_layer(layer))]
    size = _size(pieces)
    if size > MODEL_BYTES:
        raise UnsupportedModelError(
            f"the caffemodel {weights_name!r} would take {size} bytes; Caffe reads no more than {MODEL_BYTES}"
        )
    with weights.open("wb", buffering=_BUFFER_BYTES) as file:
        for piece in pieces:
            if isinstance(piece, bytes):
                file.write(piece)
            else:
                for block in _checked_payload(piece):
                    file.write(block)
    return prototxt, weights


def _tree(net: CaffeNet) -> Message:
    layers = tuple(Field("layer", _block(layer), layer.comments) for layer in net.layers)
    return Message((*net.head.fields, *layers), net.head.comments)


def _block(layer: Layer) -> Message:
    """Return the block of a layer, with its name, type, bottoms and tops."""
    block = layer.message
    if not block.fields:
        return make(name=layer.name, type=layer.type, bottom=layer.bottoms, top=layer.tops)
    for field, text in {"name": layer.name, "type": layer.type}.items():
        if block.text(field) != text:
            block = block.replaced(field, text)
    for field, texts in {"bottom": layer.bottoms, "top": layer.tops}.items():
        if block.texts(field) != texts:
            block = block.replaced(field, *texts)
    return block


_Piece = bytes | Blob
"""Encoded fields, or a blob whose values stand here."""


def _encoded_layer(layer: Layer) -> list[_Piece]:
    small = [(LAYER_NAME, layer.name), (LAYER_TYPE, layer.type)]
    small += [(LAYER_BOTTOM, name) for name in layer.bottoms] + [(LAYER_TOP, name) for name in layer.tops]
    pieces: list[_Piece] = [b"".join(_encoded_text(*item) for item in small), layer.rest]
    for blob in layer.blobs:
        content: list[_Piece] = [
            _encoded_shape(blob) + blob.rest + header(blob.values.field, blob.values.payload_size),
            blob,
        ]
        pieces += [header(LAYER_BLOBS, _size(content)), *content]
    return [header(NET_LAYER, _size(pieces)), *pieces]


def _encoded_text(number: int, text: str) -> bytes:
    data = text.encode("utf-8", "surrogateescape")
    return header(number, len(data)) + data


def _encoded_shape(blob: Blob) -> bytes:
    if blob.legacy:
        return b"".join(
            encode_varint(number << 3) + encode_varint(length) for number, length in enumerate(blob.shape, 1)
        )
    lengths = b"".join(encode_varint(length) for length in blob.shape)
    dims = header(SHAPE_DIM, len(lengths)) + lengths if lengths else b""
    return header(BLOB_SHAPE, len(dims)) + dims


def _size(pieces: Iterable[_Piece]) -> int:
    return sum(len(piece) if isinstance(piece, bytes) else piece.values.payload_size for piece in pieces)


def _checked_payload(blob: Blob) -> Iterator[bytes | memoryview]:
    """Yield the values of a blob; a file whose lengths are wrong must not come about."""
    written = 0
    for block in blob.values.payload():
        written += len(block)
        yield block
    if written != blob.values.payload_size:
        raise ModelFileError(
            f"a blob of shape {list(blob.shape)} gave {written} bytes instead of {blob.values.payload_size}"
        )
