"""The loaded model: a message that holds the structure, and a store that holds the big tensors' bytes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import onnx

from twinquant_onnx.integers import IntegerMemory
from twinquant_onnx.tensors import RandomAccess, TensorBytes

__all__ = ["OnnxGraph", "StoredTensor", "TensorStore", "stored_index"]

_SCHEME = "twinquant:"
_REFERENCE = re.compile(_SCHEME + r"(\d{1,9})", re.ASCII)

_DATA_FIELDS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "external_data")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor whose bytes are not in the message.

    Attributes:
        content: where its bytes come from.
        external: the tensor lies in a file of its own: it did in the input, so it does in the outputs.
    """

    content: TensorBytes
    external: bool = False


@dataclass(slots=True)
class TensorStore:
    """The bytes of the tensors that a message only refers to.

    A `TensorProto` refers to entry n by `data_location: EXTERNAL` and the single external_data entry
    `location: "twinquant:<n>"`; it keeps its name, data type and dims and may be copied freely.

    Attributes:
        entries: the tensors.
        integers: what was computed for one twin and will be needed for the other; shared by all copies of the store.
    """

    entries: list[StoredTensor] = field(default_factory=list)
    integers: IntegerMemory = field(default_factory=IntegerMemory)

    def copy(self) -> TensorStore:
        """Return a store with the same entries, to which others can be added."""
        return TensorStore(list(self.entries), self.integers)

    def attach(self, tensor: onnx.TensorProto, content: TensorBytes, *, external: bool = False) -> None:
        """Give a tensor's data over to the store: the message loses its data and gets the reference.

        Edits `tensor`.
        """
        for name in _DATA_FIELDS:
            tensor.ClearField(name)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", f"{_SCHEME}{len(self.entries)}"
        self.entries.append(StoredTensor(content, external))

    def get(self, tensor: onnx.TensorProto) -> StoredTensor | None:
        """Return the entry that a tensor refers to, or None if its data is in the message."""
        index = stored_index(tensor)
        return None if index is None else self.entries[index]

    def readable(self, tensor: onnx.TensorProto) -> RandomAccess | None:
        """Return the bytes of a tensor whose data is in the store; None if its data is in the message.

        Raises:
            TypeError: the bytes are computed while they are written.
        """
        stored = self.get(tensor)
        if stored is None:
            return None
        if not isinstance(stored.content, RandomAccess):
            raise TypeError(f"tensor {tensor.name!r} is computed while it is written and cannot be read")
        return stored.content

    def detach(self, tensor: onnx.TensorProto) -> None:
        """Put the bytes of a tensor into the message, if they are in the store: undoes `attach`. Edits `tensor`."""
        source = self.readable(tensor)
        if source is not None:
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = source.read_all().tobytes()


def stored_index(tensor: onnx.TensorProto) -> int | None:
    """Return the number of the store's entry that a tensor refers to, or None if its data is in the message."""
    if tensor.data_location != onnx.TensorProto.EXTERNAL:
        return None
    reference = _REFERENCE.fullmatch(tensor.external_data[0].value) if tensor.external_data else None
    return int(reference[1]) if reference else None


@dataclass(frozen=True, slots=True)
class OnnxGraph:
    """A model as this plugin works on it. Never modified after loading; `insert` makes new ones.

    Attributes:
        model: structure, attributes and small tensors; big tensors (and all external ones) refer to `store`.
        store: the big tensors.
        inputs: the files that the model was read from.
        undivided: weights are balanced, but the division of their activations is gone: it is left to the twins, and the
            graph itself does not compute what the float model does.
    """

    model: onnx.ModelProto
    store: TensorStore
    inputs: tuple[Path, ...] = ()
    undivided: bool = False

    @classmethod
    def rebuilt(cls, edited: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], source: OnnxGraph) -> OnnxGraph:
        """Return a graph with other nodes.

        Args:
            edited: a copy of the source's model, which gets the nodes.
            nodes: all nodes of the new graph.
            source: the graph that the model is a copy of.
        """
        kept = onnx.GraphProto(node=nodes)
        edited.graph.ClearField("node")
        edited.graph.MergeFrom(kept)
        return cls(edited, source.store, source.inputs)
