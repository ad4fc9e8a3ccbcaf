"""The inputs of a module: taken apart into tensors, put together again, and checked against the example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils import _pytree as pytree

from twinquant.errors import ArgumentError, DataError
from twinquant_torch.tensors import exact_array, to_array

__all__ = ["Call", "InputLayout", "check_example", "device_of", "split_call"]

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


def check_example(args: tuple[Any, ...], kwargs: Mapping[str, Any], device: torch.device | None) -> None:
    """Refuse example inputs that show nothing of what the model computes.

    Args:
        args: positional arguments of `forward`.
        kwargs: its keyword arguments.
        device: where the model is, if it is in one place.

    Raises:
        DataError: a tensor is on another device, is empty, or holds NaN, or the model is on no device.
    """
    if device is not None and device.type == "meta":
        raise DataError(
            "the model is on the device 'meta', which has no values; load its weights on a CPU or a GPU first"
        )
    for leaf in pytree.tree_leaves((args, dict(kwargs))):
        if not isinstance(leaf, torch.Tensor):
            continue
        if device is not None and leaf.device != device:
            raise DataError(
                f"the example inputs are on {leaf.device}, the model is on {device}; move them with "
                f".to({str(device)!r})"
            )
        if leaf.ndim and not leaf.shape[0]:
            raise DataError(f"example_inputs: a tensor of shape {list(leaf.shape)} is an empty batch; give a real one")
        if leaf.is_floating_point() and bool(leaf.isnan().any()):
            raise DataError(
                "example_inputs: a tensor holds NaN, so it cannot be seen whether the exported model computes what the "
                "module does; give a batch of real data"
            )


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
        parameters: the names of `forward`'s arguments.
    """

    example: tuple[Any, ...]
    spec: Any
    names: tuple[str, ...]
    open_axes: tuple[frozenset[int], ...]
    parameters: tuple[str, ...] = ()

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """The tensors of the example."""
        return tuple(leaf for leaf in self.example if isinstance(leaf, torch.Tensor))

    def example_feeds(self) -> dict[str, npt.NDArray[Any]]:
        """Return the example's tensors as arrays, by the names of the exported inputs."""
        return {name: to_array(tensor) for name, tensor in zip(self.names, self.tensors, strict=True)}

    def leaves_of(self, args: Sequence[Any], kwargs: Mapping[str, Any], device: torch.device | None) -> list[Any]:
        """Take the arguments of a call apart, and refuse those that the exported model could not take.

        Returns:
            the leaves, in the order of the example's.

        Raises:
            DataError: arity, type, element type, rank, length, device or a plain value differ from those of the
                example, or the batch is empty.
        """
        leaves = self._flattened(args, kwargs)
        tensors = iter(zip(self.names, self.open_axes, strict=True))
        for leaf, wanted in zip(leaves, self.example, strict=True):
            if isinstance(wanted, torch.Tensor):
                _check_tensor(leaf, wanted, *next(tensors), device)
        return leaves

    def feeds_of(self, item: Any) -> dict[str, npt.NDArray[Any]] | None:
        """Return the tensors of a batch of the user's as arrays, by the names of the exported inputs.

        Shapes and element types are looked at by whoever takes the arrays.

        Args:
            item: a tensor, a tuple or list of the positional arguments of `forward`, or a dict of its keyword
                arguments; what else it holds, such as labels, is left out.

        Returns:
            None for what holds no tensor, or lacks the names of the exported inputs.

        Raises:
            DataError: it is nested otherwise than the example, or has another plain value.
        """
        if isinstance(item, Mapping):
            item = dict(item)  # such as transformers' BatchEncoding
        if not any(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(item)):
            return None
        args, kwargs = split_call(item)
        example_args, example_kwargs = pytree.tree_unflatten(list(self.example), self.spec)
        if kwargs and not example_kwargs:
            if not set(self.names) <= kwargs.keys():
                return None
            tensors = [kwargs[name] for name in self.names]
        else:
            tensors = self._tensors_of(args[: len(example_args)], self._meant(kwargs, example_kwargs))
        return {name: _as_array(name, leaf) for name, leaf in zip(self.names, tensors, strict=True)}

    def ignored_argument(self, item: Any) -> str | None:
        """Return the argument of `forward` that what a tuple holds behind the example's arguments might be; None: none.

        It is taken for labels.
        """
        args, kwargs = pytree.tree_unflatten(list(self.example), self.spec)
        if kwargs or not isinstance(item, (tuple, list)):
            return None
        return self.parameters[len(args)] if len(args) < min(len(item), len(self.parameters)) else None

    def _meant(self, kwargs: Mapping[str, Any], example: Mapping[str, Any]) -> dict[str, Any]:
        """Return keyword arguments without labels: what is no argument of `forward`."""
        if not example.keys() <= kwargs.keys():
            return dict(kwargs)
        return {name: value for name, value in kwargs.items() if name in example or name in self.parameters}

    def _tensors_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        leaves = self._flattened(args, kwargs)
        return [leaf for leaf, wanted in zip(leaves, self.example, strict=True) if isinstance(wanted, torch.Tensor)]

    def _flattened(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
        """Take the arguments of a call apart, and refuse those that are nested otherwise or have other plain values."""
        leaves, spec = pytree.tree_flatten((tuple(args), self._in_order(kwargs)))
        if spec != self.spec:
            raise DataError(
                f"the model was exported with {self._outline(self.example, self.spec)} as inputs, this call has "
                f"{self._outline(leaves, spec)}; call it with as many arguments as the example inputs had, nested "
                "alike, by position or by name as they were"
            )
        for leaf, wanted in zip(leaves, self.example, strict=True):
            if not isinstance(wanted, torch.Tensor) and _differs(leaf, wanted):
                raise DataError(
                    f"the model was exported with the value {wanted!r}, this call has {leaf!r} in its place; what a "
                    "model does with another value is another model: export it with that value"
                )
        return list(leaves)

    def _in_order(self, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return keyword arguments in the order of the example's."""
        _, example = pytree.tree_unflatten(list(self.example), self.spec)
        known = [name for name in example if name in kwargs]
        return {name: kwargs[name] for name in (*known, *(name for name in kwargs if name not in example))}

    @staticmethod
    def _outline(leaves: Sequence[Any], spec: Any) -> str:
        kinds = [_Word(f"Tensor {list(leaf.shape)}" if _is_tensor(leaf) else repr(leaf)) for leaf in leaves]
        args, kwargs = pytree.tree_unflatten(kinds, spec)
        return f"({', '.join([*map(repr, args), *(f'{name}={value!r}' for name, value in kwargs.items())])})"

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
        if name not in feeds:
            return example.clone()
        # A copy: the module may change its inputs, and these arrays are the user's data.
        values = np.array(feeds[name], dtype=np.float32 if feeds[name].dtype.name == "bfloat16" else None)
        return torch.from_numpy(values).to(device=device, dtype=example.dtype)


def _as_array(name: str, leaf: Any) -> npt.NDArray[Any]:
    if isinstance(leaf, np.ndarray):
        return leaf
    if not isinstance(leaf, torch.Tensor):
        raise DataError(f"input {name!r}: must be a tensor, got {type(leaf).__name__}")
    return exact_array(leaf)


class _Word(str):
    """A text that is shown without quotes, also inside of lists and dicts."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def _is_tensor(leaf: Any) -> bool:
    return isinstance(leaf, torch.Tensor)


def _check_tensor(
    leaf: Any, wanted: torch.Tensor, name: str, open_axes: frozenset[int], device: torch.device | None
) -> None:
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
    if wanted.numel() and not leaf.numel():
        raise DataError(
            f"input {name!r}: the batch is empty, its shape is {list(leaf.shape)}; leave empty batches out, they do "
            "not count"
        )
    if device is not None and leaf.device != device:
        raise DataError(
            f"input {name!r}: the tensor is on {leaf.device}, the model on {device}; move it with .to({str(device)!r})"
        )


_PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device)


def _differs(leaf: Any, wanted: Any) -> bool:
    """Tell whether two plain values differ; of other objects nobody knows what their equality means."""
    if isinstance(leaf, _PLAIN) and isinstance(wanted, _PLAIN):
        return bool(leaf != wanted)
    return isinstance(leaf, torch.Tensor) or isinstance(leaf, _PLAIN) != isinstance(wanted, _PLAIN)
