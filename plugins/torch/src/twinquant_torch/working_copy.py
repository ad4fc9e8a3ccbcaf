"""A model of the plugin's own to run and to trace, so that the user's stays as it is."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch.utils import _pytree as pytree

__all__ = ["WorkingCopy", "cloned"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class WorkingCopy:
    """A module that may be run without asking.

    Attributes:
        module: a copy of the user's module that shares the memory of its parameters; or the user's module itself, where
            Python cannot copy it.
        is_copy: which of the two.
    """

    module: Any
    is_copy: bool

    @classmethod
    def of(cls, module: Any) -> WorkingCopy:
        """Copy a module: everything but the values of its parameters."""
        reason = _replaced_forward(module)
        if not reason:
            try:
                return cls(copy.deepcopy(module, _shared(module)), True)
            except Exception as error:  # noqa: BLE001  deepcopy raises whatever the attributes of a module raise
                reason = f"{type(error).__name__}: {error}"
        _logger.info(
            "%s cannot be copied (%s): it is run itself, and its buffers are restored after that; counters and results "
            "that it keeps as attributes are not",
            type(module).__name__,
            reason,
        )
        return cls(module, False)

    def anew(self) -> WorkingCopy:
        """Copy the copy, in the state that it is in now."""
        return WorkingCopy.of(self.module) if self.is_copy else self

    @contextlib.contextmanager
    def undisturbed(self) -> Iterator[Any]:
        """Give the module for runs that the user did not ask for: random numbers and the user's buffers stay."""
        kept = [] if self.is_copy else _buffers(self.module)
        tensors = (*self.module.parameters(), *self.module.buffers())
        devices = {tensor.device.index for tensor in tensors if tensor.device.type == "cuda"}
        try:
            with torch.random.fork_rng(sorted(devices)):
                yield self.module
        finally:
            with torch.no_grad():
                for inner, name, buffer, values in kept:
                    inner._buffers[name] = buffer
                    if not torch.equal(buffer, values):
                        buffer.copy_(values)


def cloned(inputs: Any) -> Any:
    """Return arguments with tensors of their own: a module may change its inputs in place."""
    with torch.inference_mode(False):
        return pytree.tree_map(lambda leaf: leaf.detach().clone() if isinstance(leaf, torch.Tensor) else leaf, inputs)


def _replaced_forward(module: Any) -> str:
    """Tell which module has a forward that may hold on to the module itself, so that the forward of a copy ran that."""
    for path, inner in module.named_modules():
        forward = vars(inner).get("forward")
        # Those that torch itself replaces, as in what torch.compile returns, are made anew for copies.
        if forward is None or type(inner).__module__.startswith("torch."):
            continue
        bound = isinstance(forward, MethodType) and forward.__self__ is inner
        if not bound or getattr(forward.__func__, "__closure__", None):
            return f"the forward of {f'its module {path!r}' if path else 'this object'} was replaced by a function"
    return ""


def _shared(module: Any) -> dict[int, Any]:
    """Return what `deepcopy` shall not copy by itself, by identity."""
    memo: dict[int, Any] = {}
    for inner in module.modules():
        for parameter in inner._parameters.values():
            if parameter is not None and id(parameter) not in memo:
                memo[id(parameter)] = _same_values(parameter)
        for leaf in pytree.tree_leaves(list(vars(inner).values())):
            # Cached results of earlier calls: deepcopy refuses tensors that have a gradient's history.
            if isinstance(leaf, torch.Tensor) and not leaf.is_leaf:
                memo[id(leaf)] = leaf.detach().clone()
    return memo


def _same_values(parameter: Any) -> Any:
    """Return another parameter in the same memory: moving or casting one of the two leaves the other alone."""
    if type(parameter) is not torch.nn.Parameter or parameter.is_inference():
        return parameter
    with torch.inference_mode(False):
        twin = torch.nn.Parameter(parameter.detach(), parameter.requires_grad)
    twin.__dict__.update(parameter.__dict__)
    return twin


def _buffers(module: Any) -> list[tuple[Any, str, torch.Tensor, torch.Tensor]]:
    return [
        (inner, name, buffer, buffer.detach().clone())
        for inner in module.modules()
        for name, buffer in inner._buffers.items()
        if buffer is not None
    ]
