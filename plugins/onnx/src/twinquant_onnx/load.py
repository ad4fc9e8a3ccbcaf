"""Reading a model without its weights: from a file, an `onnx.ModelProto` or an `onnx_ir.Model`."""

from __future__ import annotations

import difflib
import mmap
import os
import stat
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError

from twinquant.errors import ArgumentError, ModelFileError
from twinquant.wire import WireError
from twinquant_onnx.completion import complete
from twinquant_onnx.external import ExternalFiles
from twinquant_onnx.file_kinds import describe_head
from twinquant_onnx.graph import OnnxGraph, TensorStore
from twinquant_onnx.proto_source import load_proto
from twinquant_onnx.recognize import is_instance_of
from twinquant_onnx.skeleton import build_skeleton

__all__ = ["load_model", "read_skeleton"]

_HEAD_BYTES = 256


def load_model(source: Any) -> OnnxGraph:
    """Load a model; its big tensors stay where they are and are read when they are needed.

    Args:
        source: the path of a binary .onnx file, an `onnx.ModelProto` or an `onnx_ir.Model`. It is not modified.

    Raises:
        ArgumentError: the source is something else.
        ModelFileError: the file is missing or no ONNX model, or a tensor is damaged or lies where it must not.
        UnsupportedModelError: the `onnx_ir.Model` cannot be expressed in ONNX.
    """
    if isinstance(source, (str, os.PathLike)):
        return _load_file(Path(source))
    if isinstance(source, onnx.ModelProto):
        return load_proto(source)
    if is_instance_of(source, "onnx_ir", "Model"):
        # onnx_ir is no dependency: whoever has such an object has it installed.
        from twinquant_onnx.ir_source import load_ir

        return load_ir(source)
    raise ArgumentError(
        "the path of an .onnx file, an onnx.ModelProto or an onnx_ir.Model is expected, "
        f"got {type(source).__qualname__}"
    )


def read_skeleton(path: Path) -> tuple[onnx.ModelProto, TensorStore]:
    """Read what an .onnx file holds besides its big tensors. Tensors and external data are not checked.

    Returns:
        The message, and the store that its big tensors refer to.

    Raises:
        ModelFileError: the file is missing or no ONNX model.
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise ModelFileError(f"{str(path)!r} is a folder; the .onnx file itself is expected")
        if not stat.S_ISREG(status.st_mode):
            raise ModelFileError(f"{str(path)!r} is not a regular file; an .onnx file is expected")
        if not status.st_size:
            raise ModelFileError(f"{str(path)!r} is empty; an ONNX model is expected")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _parse(data, path)
    except FileNotFoundError as error:
        raise ModelFileError(f"there is no file {str(path)!r}{_similar_names(path)}") from error
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{str(path)!r} cannot be read: {error}") from error


def _load_file(path: Path) -> OnnxGraph:
    model, store = read_skeleton(path)
    try:
        return complete(model, store, ExternalFiles(path.parent), (path.resolve(),))
    except ModelFileError as error:
        raise ModelFileError(f"{str(path)!r}: {error}") from error


def _parse(data: mmap.mmap, path: Path) -> tuple[onnx.ModelProto, TensorStore]:
    model = onnx.ModelProto()
    try:
        message, store = build_skeleton(data, path.resolve())
        model.ParseFromString(message)
        if not model.HasField("graph"):
            raise WireError("it holds no graph")
    except (WireError, DecodeError) as error:
        kind = describe_head(data[:_HEAD_BYTES])
        raise ModelFileError(f"{str(path)!r} is no binary ONNX model: {kind} ({error})") from error
    return model, store


def _similar_names(path: Path) -> str:
    """Return a hint at files of the same folder with a similar name, or at the missing folder."""
    if not path.parent.is_dir():
        return f"; the folder {str(path.parent)!r} does not exist either"
    names = [entry.name for entry in path.parent.iterdir() if entry.is_file()]
    close = difflib.get_close_matches(path.name, names, n=3)
    return f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
