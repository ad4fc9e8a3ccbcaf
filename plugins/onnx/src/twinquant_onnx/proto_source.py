"""Loading an `onnx.ModelProto` that is in memory already: its big tensors are read from it, one at a time."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from twinquant.wire import header
from twinquant_onnx.completion import complete
from twinquant_onnx.external import ExternalFiles
from twinquant_onnx.graph import OnnxGraph, TensorStore
from twinquant_onnx.lazy import LazyBytes
from twinquant_onnx.skeleton import MINIMUM_STORED_BYTES, RAW_LAYOUT_FIELDS
from twinquant_onnx.tensor_sizes import stored_nbytes
from twinquant_onnx.tensors import Bytes
from twinquant_onnx.traversal import HOLDERS, tensors_in

__all__ = ["load_proto"]

_ADVICE = (
    "a ModelProto does not say which folder it was loaded from, so the current one is searched: pass the model's path "
    "instead, or load it together with its data, by onnx.load(path)"
)
_RAW_LAYOUT_DTYPES = {"float_data": "<f4", "double_data": "<f8"}
_DATA_FIELDS = frozenset(("raw_data", *_RAW_LAYOUT_DTYPES))


def load_proto(source: onnx.ModelProto) -> OnnxGraph:
    """Load a model that is in memory. The source is not modified and must not be modified until the twins are written.

    Raises:
        ModelFileError: a tensor is damaged, or its external data is not found from the current folder.
    """
    model, store = onnx.ModelProto(), TensorStore()
    _copy(source, model, store)
    return complete(model, store, ExternalFiles(Path(), _ADVICE))


def _raw_bytes(tensor: onnx.TensorProto) -> Bytes:
    """Return the data of a tensor as raw data, uint8 `(n,)`; typed data only as far as `RAW_LAYOUT_FIELDS` goes."""
    if tensor.HasField("raw_data"):
        return np.frombuffer(tensor.raw_data, np.uint8)
    field = RAW_LAYOUT_FIELDS[tensor.data_type]
    return np.array(getattr(tensor, field), _RAW_LAYOUT_DTYPES[field]).view(np.uint8)


def _copy(source: Any, target: Any, store: TensorStore) -> None:
    """Copy a message into an empty one, big tensors into the store."""
    if isinstance(source, onnx.TensorProto):
        _copy_tensor(source, target, store)
        return
    holders = HOLDERS[source.DESCRIPTOR.name]
    for field, value in source.ListFields():
        if field.name not in holders:
            _copy_field(field, value, target)
        elif hasattr(value, "DESCRIPTOR"):
            _copy_whole_or_in_parts(value, getattr(target, field.name), store)
        else:
            children = getattr(target, field.name)
            for child in value:
                _copy_whole_or_in_parts(child, children.add(), store)


def _copy_whole_or_in_parts(source: Any, target: Any, store: TensorStore) -> None:
    if any(_is_big(tensor) for tensor, _ in tensors_in(source)):
        target.SetInParent()
        _copy(source, target, store)
    else:
        target.CopyFrom(source)


def _copy_tensor(source: onnx.TensorProto, target: onnx.TensorProto, store: TensorStore) -> None:
    # Field by field: ListFields would copy the data out of the message.
    for field in source.DESCRIPTOR.fields:
        if field.name not in _DATA_FIELDS and (not field.has_presence or source.HasField(field.name)):
            _copy_field(field, getattr(source, field.name), target)
    store.attach(target, LazyBytes(_raw_size(source), partial(_raw_bytes, source)))


def _is_big(tensor: onnx.TensorProto) -> bool:
    """Tell whether a tensor goes to the store, judged by its dims: asking for the data itself would copy it."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return False
    if not tensor.HasField("raw_data") and not getattr(tensor, RAW_LAYOUT_FIELDS.get(tensor.data_type, ""), ()):
        return False
    return (stored_nbytes(tensor.data_type, tensor.dims) or 0) >= MINIMUM_STORED_BYTES


def _raw_size(tensor: onnx.TensorProto) -> int:
    if tensor.HasField("raw_data"):
        return len(tensor.raw_data)
    field = RAW_LAYOUT_FIELDS[tensor.data_type]
    return len(getattr(tensor, field)) * np.dtype(_RAW_LAYOUT_DTYPES[field]).itemsize


def _copy_field(field: Any, value: Any, target: Any) -> None:
    if field.type == field.TYPE_STRING:
        # Text that is not UTF-8 is read as bytes and cannot be set, only parsed.
        for text in (value,) if isinstance(value, (str, bytes)) else value:
            data = text.encode() if isinstance(text, str) else text
            target.MergeFromString(header(field.number, len(data)) + data)
    elif hasattr(value, "DESCRIPTOR"):
        getattr(target, field.name).CopyFrom(value)
    elif hasattr(value, "extend"):
        getattr(target, field.name).extend(value)
    else:
        setattr(target, field.name, value)
