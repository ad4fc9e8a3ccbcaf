"""The inputs of a module: taken apart into tensors, put together again, and checked against the example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from twinquant.errors import ArgumentError, DataError

__all__ = ["Call", "InputLayout", "device_of", "split_call"]

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""The arguments of one call of a module."""


def split_call(inputs: Any) -> Call:
    """Return the positional and the keyword arguments that a user means by example inputs.

    Raises:
        ArgumentError: they hold no tensor.
    """
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        kwargs = {str(name): value for name, value in inputs.items()}
    else:
        args = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves((args, kwargs))):
        raise ArgumentError(
            "example_inputs: must be a tensor, a tuple of the arguments of forward, or a dict of its keyword "
            f"arguments, with at least one tensor, got {type(inputs).__name__}"
        )
    return args, kwargs


def device_of(module: torch.nn.Module) -> torch.device | None:
    """Return the device that a module's parameters are on; None for a module without, or with several devices."""
    devices = {tensor.device for tensor in (*module.parameters(), *module.buffers())}
    return devices.pop() if len(devices) == 1 else None


@dataclass(frozen=True, slots=True, eq=False)
class InputLayout:
    """How the arguments of a module's `forward` are made of tensors.

    Attributes:
        example: the leaves of the example's arguments.
        spec: how they are nested.
        names: the names of the tensors among them, in their order: the inputs of the exported graph.
        open_axes: for each tensor, the axes that have any length.
    """

    example: tuple[Any, ...]
    spec: Any
    names: tuple[str, ...]
    open_axes: tuple[frozenset[int], ...]

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors of the example."""
        return tuple(leaf for leaf in self.example if isinstance(leaf, torch.Tensor))

    def check(self, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device | None) -> None:
        """Refuse a call that the exported model could not take.

        Raises:
            DataError: arity, type, element type, rank, length or device differ from those of the example.
        """
        leaves, spec = pytree.tree_flatten((tuple(args), dict(kwargs)))
        if spec != self.spec:
            raise DataError(
                f"the model was exported with {_outline(self.example)} as inputs, this call has {_outline(leaves)}; "
                "call it with as many arguments as the example inputs had, nested alike"
            )
        tensors = iter(zip(self.names, self.open_axes, strict=True))
        for leaf, wanted in zip(leaves, self.example, strict=True):
            if not isinstance(wanted, torch.Tensor):
                continue
            name, open_axes = next(tensors)
            if not isinstance(leaf, torch.Tensor):
                raise DataError(f"input {name!r}: must be a tensor, got {type(leaf).__name__}")
            if leaf.dtype != wanted.dtype:
                raise DataError(f"input {name!r}: the tensor is {leaf.dtype}, the model takes {wanted.dtype}")
            fits = leaf.ndim == wanted.ndim and all(
                axis in open_axes or length == given
                for axis, (length, given) in enumerate(zip(wanted.shape, leaf.shape, strict=True))
            )
            if not fits:
                taken = ["?" if axis in open_axes else str(length) for axis, length in enumerate(wanted.shape)]
                raise DataError(
                    f"input {name!r}: the tensor has shape {list(leaf.shape)}, the model takes [{', '.join(taken)}]"
                )
            if device is not None and leaf.device != device:
                raise DataError(
                    f"input {name!r}: the tensor is on {leaf.device}, the model on {device}; move it with "
                    f".to({str(device)!r})"
                )

    def call_of(self, feeds: Mapping[str, Any], device: torch.device | None) -> Call:
        """Return the arguments of `forward` for one batch of arrays by input name."""
        names = iter(self.names)
        leaves = [
            self._leaf(leaf, next(names), feeds, device) if isinstance(leaf, torch.Tensor) else leaf
            for leaf in self.example
        ]
        args, kwargs = pytree.tree_unflatten(leaves, self.spec)
        return tuple(args), dict(kwargs)

    def _leaf(
        self, example: torch.Tensor, name: str, feeds: Mapping[str, Any], device: torch.device | None
    ) -> torch.Tensor:
        """Return an input as a tensor; one that the exported graph does not read is the example's."""
        return torch.from_numpy(feeds[name]).to(device=device, dtype=example.dtype) if name in feeds else example


def _outline(leaves: Sequence[Any]) -> str:
    kinds = (f"Tensor {list(leaf.shape)}" if isinstance(leaf, torch.Tensor) else repr(leaf) for leaf in leaves)
    return f"({', '.join(kinds)})"
