"""Writing a model: the .onnx file, and beside it one file for every external tensor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from twinquant.errors import ModelFileError, UnsupportedModelError
from twinquant_onnx.encode import EncodedModel, encode_model
from twinquant_onnx.filenames import name_key, safe_file_name
from twinquant_onnx.graph import OnnxGraph, StoredTensor, TensorStore
from twinquant_onnx.tensors import TensorBytes
from twinquant_onnx.traversal import tensors_in

__all__ = ["write_model"]

MODEL_BYTES = 2_000_000_000
"""A model file stays smaller than this: protobuf's own limit is 2 GiB, and tools need room to add to a model."""

_BUFFER_BYTES = 1 << 15
"""Gathers small pieces; smaller than a block of a tensor, so that blocks are written without being copied."""


def write_model(
    graph: OnnxGraph, folder: Path, prefix: str, suffix_word: str, *, model_bytes: int = MODEL_BYTES
) -> Sequence[Path]:
    """Write a model into an existing folder; weights that are computed lazily are computed now.

    A tensor that was external stays so. Beyond that the largest tensors go out, largest first, while the model file
    would reach `model_bytes`.

    Args:
        graph: the model; it is not modified.
        folder: where the files go. Files of the same names are replaced.
        prefix: start of the model file's name; without one it is `<suffix_word>_model.onnx`.
        suffix_word: `deploy` or `fake_quant`.
        model_bytes: the size that the model file must not reach.

    Returns:
        The files that were written, the model file first.

    Raises:
        ModelContentError: a weight that is computed now holds NaN or infinity.
        ModelFileError: the source of a tensor is shorter than it was.
        UnsupportedModelError: the model file would reach `model_bytes` with all big tensors outside.
        OSError: writing fails.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph.model)
    encoded, outside = _place(model, graph.store, f"_{suffix_word.replace('_', '')}.external", model_bytes)
    path = folder / f"{prefix}{'_' if prefix else ''}{suffix_word}_model.onnx"
    _write_file(path, encoded.pieces)
    for name, content in outside.items():
        _write_file(folder / name, (content,))
    return path, *(folder / name for name in outside)


def _place(
    model: onnx.ModelProto, store: TensorStore, ending: str, model_bytes: int
) -> tuple[EncodedModel, dict[str, TensorBytes]]:
    """Decide which tensors lie outside of the model file, and make them refer to their files. Edits `model`.

    Returns:
        The model file, and by name the external files.
    """
    big = [
        _BigTensor(_display_name(tensor, node), tensor, stored)
        for tensor, node in tensors_in(model)
        if (stored := store.get(tensor)) is not None and stored.content.nbytes
    ]
    leaving = [tensor for tensor in big if tensor.stored.external]
    inside = sorted((tensor for tensor in big if not tensor.stored.external), key=_largest_first)
    outside: dict[str, TensorBytes] = {}
    taken: set[str] = set()
    while True:
        for tensor in leaving:
            name = safe_file_name(tensor.name, ending, taken)
            taken.add(name_key(name))
            outside[name] = tensor.stored.content
            _point_to(tensor.message, name, tensor.stored.content.nbytes)
        encoded = encode_model(model, store)
        if encoded.nbytes < model_bytes:
            return encoded, outside
        leaving = _pop_until(inside, encoded.nbytes - model_bytes)
        if not leaving:
            raise UnsupportedModelError(
                f"without its big tensors the model still takes {encoded.nbytes} bytes; "
                f"a model file has to stay below {model_bytes}"
            )


@dataclass(frozen=True, slots=True)
class _BigTensor:
    """A stored tensor, the message that refers to it, and the name that its own file is called after."""

    name: str
    message: onnx.TensorProto
    stored: StoredTensor


def _display_name(tensor: onnx.TensorProto, node: onnx.NodeProto | None) -> str:
    if node is None:
        return tensor.name or "unnamed"
    output = "".join(node.output[:1])
    return output if node.op_type == "Constant" else ".".join(filter(None, (node.name or output, tensor.name)))


def _largest_first(tensor: _BigTensor) -> tuple[int, str]:
    return -tensor.stored.content.nbytes, tensor.name


def _pop_until(tensors: list[_BigTensor], excess: int) -> list[_BigTensor]:
    """Remove as many tensors from the head of the list, and return them, as hold more than `excess` bytes."""
    popped = []
    while tensors and excess >= 0:
        popped.append(tensors.pop(0))
        excess -= popped[-1].stored.content.nbytes
    return popped


def _point_to(tensor: onnx.TensorProto, file_name: str, nbytes: int) -> None:
    """Make a tensor refer to a file of its own instead of to the store. Edits `tensor`."""
    tensor.ClearField("external_data")
    for key, value in (("location", file_name), ("offset", "0"), ("length", str(nbytes))):
        tensor.external_data.add(key=key, value=value)


def _write_file(path: Path, pieces: Sequence[bytes | TensorBytes]) -> None:
    with path.open("wb", buffering=_BUFFER_BYTES) as file:
        for piece in pieces:
            if isinstance(piece, bytes):
                file.write(piece)
                continue
            written = sum(file.write(block.data) for block in piece.blocks())
            if written != piece.nbytes:
                raise ModelFileError(
                    f"a tensor of {piece.nbytes} bytes yields {written} bytes: the model was changed while it was read"
                )
