"""A layer's float weight: read in pieces, and multiplied by balance factors while it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

import numpy as np
import numpy.typing as npt
import onnx

from twinquant.errors import ModelContentError, UnsupportedModelError
from twinquant.numerics import BLOCK_ELEMENTS
from twinquant.plan import LayerKind
from twinquant.registry import LayerWeight
from twinquant_onnx.constants import Constant, raw_bytes
from twinquant_onnx.graph import TensorStore
from twinquant_onnx.layers import LoadedModel, Site, analyse
from twinquant_onnx.tensors import ArrayBytes, Bytes, RandomAccess
from twinquant_onnx.topology import Reader, declare_initializers, defined_names
from twinquant_onnx.traversal import graphs_in
from twinquant_onnx.unread import drop_unread

__all__ = ["balance_weights", "layer_weight", "replace_weights"]

Float32Array = npt.NDArray[np.float32]

_DTYPES: dict[int, str] = {
    onnx.TensorProto.FLOAT: "<f4",
    onnx.TensorProto.FLOAT16: "<f2",
    onnx.TensorProto.DOUBLE: "<f8",
    onnx.TensorProto.BFLOAT16: "<u2",
}
_IN_FIRST = (LayerKind.CONV_TRANSPOSE, LayerKind.GEMM, LayerKind.MATMUL)


def layer_weight(loaded: LoadedModel, layer: str, *, recurrence: bool) -> LayerWeight:
    """Return a layer's weight as calibration reads it."""
    site = _site(loaded, layer)
    constant = site.recurrence if recurrence else site.weight
    if constant is None:
        raise ValueError(f"layer {layer!r} has no such weight")
    view = _WeightView(constant.tensor, loaded.graph.store, _view(constant, site))
    return LayerWeight(view, out_axis=1 if _is_in_first(loaded, site, constant) else 0, groups=site.group)


def balance_weights(loaded: LoadedModel, factors: Mapping[str, Float32Array]) -> LoadedModel:
    """Return the model with weights that are multiplied by one factor per input channel when they are read.

    Every node of the result has a name: the one that it had in the given model, also where that was made up from its
    position. Constants that nobody reads any more are left out.

    Raises:
        UnsupportedModelError: a weight is bfloat16.
    """
    model = onnx.ModelProto()
    model.CopyFrom(loaded.graph.model)
    # The integers of a weight are remembered by its name, and these weights keep their names.
    store = TensorStore(list(loaded.graph.store.entries))
    for node, name in zip(model.graph.node, loaded.topology.names, strict=True):
        node.name = name
    sites = [_site(loaded, layer) for layer in factors]
    for site, values in zip(sites, factors.values(), strict=True):
        _balance(loaded, site, model.graph, store, values)
    declare_initializers(model, model.graph.initializer[len(loaded.graph.model.graph.initializer) :])
    drop_unread(model.graph, [tensor for site in sites for tensor in loaded.graph.model.graph.node[site.index].input])
    return analyse(replace(loaded.graph, model=model, store=store))


def replace_weights(loaded: LoadedModel, weights: Mapping[str, npt.NDArray[np.floating]]) -> LoadedModel:
    """Return the model with other weights for some layers; whoever shares a weight with them keeps it.

    Args:
        loaded: the model.
        weights: by layer, the type of the weight, shape `(out, in / groups, ...)` or, for a transposed convolution,
            `(in, out / groups, ...)`.
    """
    model = onnx.ModelProto()
    model.CopyFrom(loaded.graph.model)
    store = TensorStore(list(loaded.graph.store.entries))
    for layer, values in weights.items():
        site = _site(loaded, layer)
        constant, slot = site.weight, site.operator.weight
        if constant is None or slot is None:
            raise ValueError(f"layer {layer!r} has no weight to replace")
        stored = loaded.graph.store.get(constant.tensor)
        if constant.initializer is not None and loaded.topology.sole_reader(constant.name) == Reader(site.index, slot):
            target, axes_swapped = model.graph.initializer[constant.initializer], _is_in_first(loaded, site, constant)
        else:
            target = _own_initializer(model.graph, site, slot, constant)
            axes_swapped = _is_in_first(loaded, site, constant) != constant.transposed
        if axes_swapped and site.operator.kind is not LayerKind.CONV_TRANSPOSE:
            values = values.T
        store.attach(target, ArrayBytes(np.ascontiguousarray(values)), external=stored is not None and stored.external)
    declare_initializers(model, model.graph.initializer[len(loaded.graph.model.graph.initializer) :])
    return analyse(replace(loaded.graph, model=model, store=store))


def _balance(
    loaded: LoadedModel, site: Site, graph: onnx.GraphProto, store: TensorStore, factors: Float32Array
) -> None:
    """Balance one layer's weight in a copied graph. Edits `graph` and `store`."""
    constant, slot = site.weight, site.operator.weight
    if constant is None or slot is None:
        raise ValueError(f"layer {site.name!r} has no weight to balance")
    if constant.tensor.data_type == onnx.TensorProto.BFLOAT16:
        raise UnsupportedModelError(
            f"layer {site.name!r}: its weight is BFLOAT16, which balance factors cannot be multiplied into; switch the "
            "balancer off for this layer"
        )
    stored = loaded.graph.store.get(constant.tensor)
    source: RandomAccess = raw_bytes(constant.tensor, loaded.graph.store)
    shape, in_first = constant.stored_shape, _is_in_first(loaded, site, constant)
    balanced = _BalancedWeight(
        source,
        _DTYPES[constant.tensor.data_type],
        _view(constant, site),
        factors if in_first else factors.reshape(site.group, -1),
        in_first=in_first,
        label=f"layer {site.name!r}: the weight {constant.name!r}",
    )
    reads = Reader(site.index, slot)
    if constant.initializer is not None and not constant.chain and loaded.topology.sole_reader(constant.name) == reads:
        target = graph.initializer[constant.initializer]
    else:
        target = _own_initializer(graph, site, slot, constant)
        if constant.transposed:
            balanced_values = np.empty(balanced.nbytes, np.uint8)
            balanced.read_into(0, balanced_values)
            balanced.close()
            matrix = balanced_values.view(_DTYPES[constant.tensor.data_type]).reshape(shape)
            store.attach(
                target, ArrayBytes(np.ascontiguousarray(matrix.T)), external=stored is not None and stored.external
            )
            return
    store.attach(target, balanced, external=stored is not None and stored.external)


def _own_initializer(graph: onnx.GraphProto, site: Site, slot: int, constant: Constant) -> onnx.TensorProto:
    """Give a layer an initializer of its own in place of one that others read too. Edits `graph`."""
    taken = set().union(*map(defined_names, graphs_in(graph)))
    name = base = f"{site.name}.balanced_weight"
    attempt = 0
    while name in taken:
        attempt += 1
        name = f"{base}_{attempt}"
    graph.node[site.index].input[slot] = name
    tensor: onnx.TensorProto = graph.initializer.add(
        name=name, data_type=constant.tensor.data_type, dims=constant.shape
    )
    return tensor


def _site(loaded: LoadedModel, layer: str) -> Site:
    return next(site for site in loaded.sites.values() if site.name == layer)


def _is_in_first(loaded: LoadedModel, site: Site, constant: Constant) -> bool:
    """Tell whether a weight is stored with its input channels first."""
    in_first = site.operator.kind in _IN_FIRST
    node = loaded.graph.model.graph.node[site.index]
    if site.operator.kind is LayerKind.GEMM and any(a.name == "transB" and a.i for a in node.attribute):
        in_first = False
    return in_first != constant.transposed


def _view(constant: Constant, site: Site) -> tuple[int, int, int]:
    """Return the shape of a weight with all its inner axes taken together; an RNN has one direction."""
    rows, columns, *rest = constant.stored_shape[1:] if site.recurrence is not None else constant.stored_shape
    return rows, columns, prod(rest)


class _WeightView:
    """A weight of rank 3 that reads what is sliced from it.

    Attributes:
        shape: its shape.
    """

    def __init__(self, tensor: onnx.TensorProto, store: TensorStore, shape: tuple[int, int, int]) -> None:
        self.shape: tuple[int, ...] = shape
        self._source = raw_bytes(tensor, store)
        self._widen = tensor.data_type == onnx.TensorProto.BFLOAT16
        self._dtype = np.dtype(_DTYPES[tensor.data_type])

    def __getitem__(self, where: tuple[slice, ...], /) -> npt.NDArray[np.floating]:
        spans = [part.indices(length) for part, length in zip(where, self.shape, strict=True)]
        lengths = [max(0, stop - start) for start, stop, _ in spans]
        inner = next((axis for axis in (2, 1) if lengths[axis] != self.shape[axis]), 0)
        if prod(lengths[:inner]) != 1:  # the rows of the block do not follow each other
            first, last, _ = spans[0]
            return np.concatenate([self[slice(row, row + 1), where[1], where[2]] for row in range(first, last)])
        start = int(np.ravel_multi_index([span[0] for span in spans], self.shape))
        values = np.empty(prod(lengths), self._dtype)
        self._source.read_into(start * self._dtype.itemsize, values.view(np.uint8))
        self._source.close()
        if self._widen:
            values = (values.astype(np.uint32) << 16).view(np.float32)
        return values.reshape(lengths)


class _BalancedWeight(RandomAccess):
    """A weight times one factor per input channel: computed for whatever part is read, never whole in memory.

    Attributes:
        nbytes: size of the weight, which is the unbalanced one's.
    """

    def __init__(
        self,
        source: RandomAccess,
        dtype: str,
        view: tuple[int, int, int],
        factors: Float32Array,
        *,
        in_first: bool,
        label: str,
    ) -> None:
        """Describe the work; nothing is read yet.

        Args:
            source: the bytes of the weight.
            dtype: its type.
            view: its shape: rows, columns and the rest.
            factors: `(in,)`, one per row; or `(groups, in / groups)`, one per column of a row's group.
            in_first: which of the two.
            label: what an error calls the weight.
        """
        self._source, self._dtype, self._label = source, np.dtype(dtype), label
        self._rows, self._columns, self._rest = view
        self._in_first = in_first
        self._factors = factors.astype(np.float32)
        self.nbytes = prod(view) * self._dtype.itemsize

    def read_into(self, start: int, out: Bytes) -> None:
        """Fill `out` with the bytes of the balanced weight from `start` on.

        Raises:
            ModelContentError: a product does not fit into the weight's type.
            ModelFileError: the file of the weight is shorter than it was.
        """
        size = self._dtype.itemsize
        first, last = start // size, -(-(start + out.size) // size)
        for begin in range(first, last, BLOCK_ELEMENTS):
            end = min(begin + BLOCK_ELEMENTS, last)
            values = self._values(begin, end).view(np.uint8)
            low, high = max(start, begin * size), min(start + out.size, end * size)
            out[low - start : high - start] = values[low - begin * size : high - begin * size]

    def close(self) -> None:
        """Close the file of the weight."""
        self._source.close()

    def _values(self, begin: int, end: int) -> npt.NDArray[np.floating]:
        values = np.empty(end - begin, self._dtype)
        self._source.read_into(begin * self._dtype.itemsize, values.view(np.uint8))
        column = np.arange(begin, end) // self._rest
        row = column // self._columns
        if self._in_first:
            factors = self._factors[row]
        else:
            factors = self._factors[row // (self._rows // len(self._factors)), column % self._columns]
        with np.errstate(over="ignore"):
            products: npt.NDArray[np.floating] = (values * factors).astype(self._dtype)
        if not np.isfinite(products).all() and np.isfinite(values).all():
            raise ModelContentError(
                f"{self._label} times its balance factors does not fit into {self._dtype.name}; switch the balancer "
                "off for this layer"
            )
        return products
