"""A model as the pieces of one protobuf message: big tensors are passed on or computed when they are written."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from twinquant.wire import header
from twinquant_onnx.graph import TensorStore
from twinquant_onnx.tensors import TensorBytes
from twinquant_onnx.traversal import HOLDERS, tensors_in

__all__ = ["EncodedModel", "encode_model"]

Piece = bytes | TensorBytes

_RAW_DATA = onnx.TensorProto.RAW_DATA_FIELD_NUMBER


@dataclass(frozen=True, slots=True)
class EncodedModel:
    """The serialization of a model in pieces.

    Attributes:
        pieces: what a file of the model consists of, in this order.
        nbytes: the size of that file.
    """

    pieces: Sequence[Piece]
    nbytes: int


def encode_model(model: onnx.ModelProto, store: TensorStore) -> EncodedModel:
    """Serialize a model with the bytes of the stored tensors in place, as `raw_data`, without reading them.

    Protobuf serializes what holds no stored tensor. Where one is held, the other fields come first, then the fields
    that lead to the stored tensors: an order that every reader of protobuf accepts.

    Args:
        model: refers to `store`; it is not modified.
        store: the big tensors.
    """
    message = onnx.ModelProto()
    message.CopyFrom(model)
    pieces = _consume(message, store) or [_serialized(message)]
    return EncodedModel(pieces, _size(pieces))


def _consume(message: Any, store: TensorStore) -> list[Piece] | None:
    """Return the pieces of a message that holds stored tensors; None if it holds none, and may be serialized whole.

    Takes the message over: nothing is left in it that was streamed.
    """
    if isinstance(message, onnx.TensorProto):
        return _consume_tensor(message, store)
    # Most nodes hold no tensor at all; asking each of their attributes for its fields would take twice as long.
    if isinstance(message, onnx.NodeProto) and next(tensors_in(message), None) is None:
        return None
    holders = HOLDERS[message.DESCRIPTOR.name]
    streamed: list[Piece] = []
    for field, value in message.ListFields():
        if field.name not in holders:
            continue
        children = (value,) if hasattr(value, "DESCRIPTOR") else value
        found = [_consume(child, store) for child in children]
        if any(found):
            for child, pieces in zip(children, found, strict=True):
                pieces = pieces or [_serialized(child)]
                streamed += [header(field.number, _size(pieces)), *pieces]
            message.ClearField(field.name)
    return [_serialized(message), *streamed] if streamed else None


def _consume_tensor(tensor: onnx.TensorProto, store: TensorStore) -> list[Piece] | None:
    stored = store.get(tensor)
    if stored is None:
        return None
    tensor.ClearField("external_data")
    tensor.ClearField("data_location")
    return [_serialized(tensor), header(_RAW_DATA, stored.content.nbytes), stored.content]


def _serialized(message: Any) -> bytes:
    data: bytes = message.SerializeToString(deterministic=True)
    return data


def _size(pieces: Iterable[Piece]) -> int:
    return sum(len(piece) if isinstance(piece, bytes) else piece.nbytes for piece in pieces)
