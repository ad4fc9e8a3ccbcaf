"""The last step of loading, whatever the source: external data is found, and every tensor is checked."""

from __future__ import annotations

from pathlib import Path

import onnx

from twinquant.errors import ModelFileError
from twinquant_onnx.external import ExternalFiles, external_entries
from twinquant_onnx.graph import OnnxGraph, TensorStore, stored_index
from twinquant_onnx.tensor_sizes import check_embedded, stored_nbytes, tensor_label
from twinquant_onnx.traversal import graphs_in, tensors_in

__all__ = ["complete"]


def complete(
    model: onnx.ModelProto, store: TensorStore, external: ExternalFiles, inputs: tuple[Path, ...] = ()
) -> OnnxGraph:
    """Return the loaded graph after giving the external tensors over to the store, and after checking it.

    Takes `model` and `store` over and edits them.

    Args:
        model: the message; its big tensors refer to the store already, external ones still to their files.
        store: the big tensors.
        external: where external tensors may lie.
        inputs: the files that were read so far.

    Raises:
        ModelFileError: there is no graph, or a tensor is damaged or lies in a file that cannot or may not be read.
    """
    if not model.HasField("graph"):
        raise ModelFileError("the model holds no graph")
    _check_text(model)
    unseen = set(range(len(store.entries)))
    for tensor, node in tensors_in(model):
        if any(dim < 0 for dim in tensor.dims):
            raise ModelFileError(f"{tensor_label(tensor, node)}: dims {list(tensor.dims)} must not be negative")
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            check_embedded(tensor, node)
        elif _refers_to_store(tensor, node, unseen):
            _check_stored(tensor, node, store)
        else:
            store.attach(tensor, external.content(tensor, node), external=True)
    if unseen:
        raise ModelFileError("an attribute holds a tensor, but its type says that it holds something else")
    return OnnxGraph(model, store, tuple(dict.fromkeys((*inputs, *external.paths))))


def _refers_to_store(tensor: onnx.TensorProto, node: onnx.NodeProto | None, unseen: set[int]) -> bool:
    """Tell whether a tensor's reference to the store is one of ours, and note that it was seen.

    A model could contain such a reference itself, and would then get at another tensor's data.
    """
    index = stored_index(tensor)
    if index is None:
        return False
    if index not in unseen:
        raise ModelFileError(
            f"{tensor_label(tensor, node)}: the external data location {external_entries(tensor)['location']!r} "
            "is no file name that can be used: rename the file"
        )
    unseen.remove(index)
    return True


def _check_stored(tensor: onnx.TensorProto, node: onnx.NodeProto | None, store: TensorStore) -> None:
    stored = store.get(tensor)
    needed = stored_nbytes(tensor.data_type, tensor.dims)
    if stored is not None and needed is not None and stored.content.nbytes != needed:
        raise ModelFileError(
            f"{tensor_label(tensor, node)}: its dims {list(tensor.dims)} need {needed} bytes, but it holds "
            f"{stored.content.nbytes}: the model is truncated or damaged"
        )


def _check_text(model: onnx.ModelProto) -> None:
    """Check that all names are text: protobuf hands out a name that is not UTF-8 as bytes, or raises."""
    try:
        for graph in graphs_in(model.graph):
            for values in (graph.input, graph.output, graph.value_info, graph.initializer):
                "".join([value.name for value in values])
            for node in graph.node:
                "".join((node.name, node.op_type, node.domain, *node.input, *node.output))
    except (TypeError, UnicodeDecodeError) as error:
        raise ModelFileError("a name in the graph is not UTF-8 text: the model is damaged") from error
