"""Whether an exported model computes what its module computes where its open axes have other lengths."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

import torch
from torch.utils import _pytree as pytree

from twinquant.errors import UnsupportedModelError
from twinquant_onnx.graph import OnnxGraph
from twinquant_torch.equality import difference
from twinquant_torch.inputs import Call
from twinquant_torch.probe import run_once, tensors_of
from twinquant_torch.request import ExportRequest, input_names, named_axes
from twinquant_torch.tensors import to_array
from twinquant_torch.working_copy import WorkingCopy

__all__ = ["check_lengths"]

_logger = logging.getLogger(__name__)

Resize = Callable[[torch.Tensor, int], torch.Tensor]


def check_lengths(graph: OnnxGraph, copy: WorkingCopy, request: ExportRequest, names: Sequence[str], what: str) -> None:
    """Refuse a model that keeps the example's length of an axis that the user wants to have any length.

    The older exporter unrolls loops over such an axis, and takes numbers that are computed from its length for
    constants, both in silence. So the model is compared once more, with twice these lengths; with half of them if the
    module does not take the others.

    Args:
        graph: the exported model.
        copy: the module: not itself, but copies of it are run.
        request: what was exported, and how.
        names: the graph's names of the tensors of the arguments, in their order.
        what: how messages call the model.

    Raises:
        UnsupportedModelError: the model computes something else, or does not run; the message names an axis.
    """
    axes = {name: named_axes(request.dynamic_axes, name) for name in input_names(request)}
    labels = list(dict.fromkeys(label for own in axes.values() for label in own.values()))
    if not labels:
        return
    for resize in (_doubled, _halved):
        problem = _problem(graph, copy, request, names, labels, resize)
        if problem is None:
            continue
        if not problem:
            return
        for label in labels if len(labels) > 1 else ():
            if own := _problem(graph, copy, request, names, [label], resize):
                labels, problem = [label], own
                break
        places = [
            f"axis {axis} of {name!r} ({label!r})"
            for name, own in axes.items()
            for axis, label in own.items()
            if label in labels
        ]
        raise UnsupportedModelError(
            f"{what} is right for the lengths of the example inputs only, though dynamic_axes wants any length of "
            f"{', '.join(places)}: with another one, it {problem}. Leave the axis out of dynamic_axes, or write "
            "forward without a Python loop over it and without numbers that are computed from its length"
        )
    _logger.info("%s is not compared at other lengths than those of the example inputs: the module needs them", what)


def _problem(
    graph: OnnxGraph,
    copy: WorkingCopy,
    request: ExportRequest,
    names: Sequence[str],
    labels: Collection[str],
    resize: Resize,
) -> str | None:
    """Tell what is wrong with other lengths of some axes; "": nothing; None: the module does not take them."""
    args, kwargs = _resized(request, labels, resize)
    try:
        expected = tensors_of(run_once(copy.anew(), args, kwargs))
    except Exception as error:  # forward is the user's code
        _logger.debug("the module does not take other lengths of %s", labels, exc_info=error)
        return None
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    feeds = {name: to_array(tensor) for name, tensor in zip(names, tensors, strict=True)}
    return difference(graph, feeds, expected, "the exported model")


def _resized(request: ExportRequest, labels: Collection[str], resize: Resize) -> Call:
    leaves, spec = pytree.tree_flatten((request.args, dict(request.kwargs or {})))
    wanted = iter(input_names(request))
    changed = []
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            for axis, label in named_axes(request.dynamic_axes, next(wanted)).items():
                if label in labels:
                    leaf = resize(leaf, axis)
        changed.append(leaf)
    args, kwargs = pytree.tree_unflatten(changed, spec)
    return tuple(args), dict(kwargs)


def _doubled(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    return torch.cat([tensor, tensor], axis)


def _halved(tensor: torch.Tensor, axis: int) -> torch.Tensor:
    return tensor.narrow(axis, 0, max(tensor.shape[axis] // 2, 1))
