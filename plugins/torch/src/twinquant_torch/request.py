"""What is exported and how, checked before torch's exporters see it."""

from __future__ import annotations

import inspect
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from twinquant.errors import ArgumentError

__all__ = ["OLDEST_OPSET", "ExportRequest", "check_request", "input_names", "named_axes"]

OLDEST_OPSET = 17


@dataclass(frozen=True, slots=True, eq=False)
class ExportRequest:
    """What is exported, and how.

    Attributes:
        module: a module in evaluation mode, or an exported program.
        args: positional arguments of `forward`.
        kwargs: its keyword arguments.
        input_names: see `TorchModel`.
        output_names: see `TorchModel`.
        dynamic_axes: see `TorchModel`.
        opset: see `TorchModel`.
    """

    module: Any
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] | None = None
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    dynamic_axes: Mapping[str, Mapping[int, str] | Sequence[int]] | None = None
    opset: int | None = None

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The tensors of the arguments, in their order."""
        leaves = pytree.tree_leaves((self.args, dict(self.kwargs or {})))
        return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


def check_request(request: ExportRequest, outputs: Sequence[torch.Tensor] | None) -> None:
    """Refuse settings that the exporters would drop in silence, or refuse in words of their own.

    Args:
        request: a module and its settings.
        outputs: what the module gives for the example inputs; None: something else than tensors.

    Raises:
        ArgumentError: the operator set is too old, names are too few, too many or given twice, or an axis is none of
            its tensor's.
    """
    if request.opset is not None:
        if isinstance(request.opset, bool) or not isinstance(request.opset, int):
            raise ArgumentError(f"opset: must be a whole number, got {request.opset!r}")
        if request.opset < OLDEST_OPSET:
            raise ArgumentError(f"opset: must be {OLDEST_OPSET} or newer, got {request.opset}")
    counts = {
        "input_names": (request.input_names, len(request.tensors), "the example inputs hold {} tensor(s)"),
        "output_names": (request.output_names, None if outputs is None else len(outputs), "the model has {} output(s)"),
    }
    for option, (names, count, what) in counts.items():
        if isinstance(names, str):
            raise ArgumentError(f"{option}: must be a list of names, got the text {names!r}; write [{names!r}]")
        if names is not None and not all(isinstance(name, str) and name for name in names):
            raise ArgumentError(f"{option}: must be a list of names, each a text with letters, got {list(names)!r}")
        if names is not None and count is not None and len(names) != count:
            raise ArgumentError(
                f"{option}: there are {len(names)} ({', '.join(map(repr, names))}), but {what.format(count)}; give a "
                "name for each"
            )
    every = Counter((*(request.input_names or ()), *(request.output_names or ())))
    for name, times in every.items():
        if times > 1:
            raise ArgumentError(
                f"input_names, output_names: {name!r} is there {times} times; every name must be another"
            )
    module = request.module
    taken = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    for name in every:
        if name in taken:
            raise ArgumentError(
                f"input_names, output_names: {name!r} is the name of a weight or buffer of the model; choose another"
            )
    _check_order(request)
    _check_axes(request, outputs)


def _check_order(request: ExportRequest) -> None:
    """Refuse names that are those of other arguments: a batch by name could be meant either way."""
    if not request.input_names:
        return
    own = input_names(replace(request, input_names=None))
    for given, known in zip(request.input_names, own, strict=True):
        if given != known and given in own:
            raise ArgumentError(
                f"input_names: {given!r} is the name of another argument of forward, whose own names are, in order, "
                f"{', '.join(map(repr, own))}; choose another name for {known!r}"
            )


def _check_form(dynamic_axes: Any) -> None:
    """Refuse what is not of the form `{"input": {0: "n"}}` or `{"input": [0]}`."""
    wanted = 'must say which axes of which input have any length, such as {"input": {0: "n"}} or {"input": [0]}'
    if not isinstance(dynamic_axes, Mapping):
        raise ArgumentError(f"dynamic_axes: {wanted}, got {dynamic_axes!r}")
    for name, axes in dynamic_axes.items():
        given = axes if isinstance(axes, (Mapping, list, tuple)) else None
        if given is None or not all(isinstance(axis, int) and not isinstance(axis, bool) for axis in given):
            raise ArgumentError(f"dynamic_axes: {wanted}, got {axes!r} for {name!r}")
        if isinstance(axes, Mapping) and not all(isinstance(label, str) for label in axes.values()):
            raise ArgumentError(f"dynamic_axes: {wanted}, got {axes!r} for {name!r}: names of axes are texts")


def _check_axes(request: ExportRequest, outputs: Sequence[torch.Tensor] | None) -> None:
    if not request.dynamic_axes:
        return
    _check_form(request.dynamic_axes)
    tensors = dict(zip(input_names(request), request.tensors, strict=True))
    if request.output_names and outputs is not None:
        tensors |= dict(zip(request.output_names, outputs, strict=True))
    for name in request.dynamic_axes:
        if name not in tensors:
            if request.output_names is not None:
                known = ", ".join(map(repr, tensors))
                raise ArgumentError(f"dynamic_axes: the model has no input or output {name!r}; it has {known}")
            continue  # maybe an output that the exporter names
        rank = tensors[name].ndim
        for axis, label in named_axes(request.dynamic_axes, name).items():
            if not 0 <= axis < rank:
                raise ArgumentError(
                    f"dynamic_axes: {name!r} has {rank} axes, which count from 0, so there is no axis {axis}"
                )
            if not label.isidentifier():
                raise ArgumentError(
                    f"dynamic_axes: axis {axis} of {name!r} cannot be called {label!r}; use letters, digits and "
                    "underscores, such as 'batch_size'"
                )


def input_names(request: ExportRequest) -> list[str]:
    """Return the names that the user knows the tensors by, in their order."""
    if request.input_names:
        return list(request.input_names)
    kwargs = dict(request.kwargs or {})
    bound = inspect.signature(request.module.forward).bind_partial(*request.args)
    names = []
    for name, value in (*bound.arguments.items(), *kwargs.items()):
        tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, torch.Tensor)]
        names += [name] if len(tensors) == 1 else [f"{name}_{index}" for index in range(len(tensors))]
    return names


def named_axes(dynamic_axes: Mapping[str, Any] | None, name: str) -> dict[int, str]:
    """Return the names of a tensor's axes that have any length."""
    axes = (dynamic_axes or {}).get(name, {})
    if isinstance(axes, Mapping):
        return {int(axis): str(label) for axis, label in axes.items()}
    word = re.sub(r"\W", "_", name)
    return {int(axis): f"{'' if word.isidentifier() else '_'}{word}_axis{axis}" for axis in axes}
