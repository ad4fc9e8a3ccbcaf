"""Looking at what modules read while they run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch

from twinquant.registry import Tap

__all__ = ["Receiver", "hooked", "is_observable", "is_trainable", "register", "without_fast_path"]

Receiver = Callable[[Tap, torch.Tensor], None]
"""Takes a tensor whose values belong to a tap; the values of one run may come in several tensors."""


def is_observable(module: Any) -> bool:
    """Tell whether what the device quantizes is the tensor that the module is called with.

    A forward of the user's may change that tensor before the layer reads it. A convolution that does not pad with zeros
    pads before it convolves, in a node of its own.
    """
    if any(name in vars(module) for name in _FORWARDS):
        return False
    made_by = (next(base for base in type(module).__mro__ if name in vars(base)) for name in _forwards_of(module))
    if not all(base.__module__.startswith("torch.nn.modules.") for base in made_by):
        return False
    return bool(getattr(module, "padding_mode", "zeros") == "zeros")


_FORWARDS = ("forward", "_conv_forward", "__call__")
"""What a convolution, or any module, does when it is called."""


def _forwards_of(module: Any) -> Iterator[str]:
    return (name for name in _FORWARDS if hasattr(type(module), name))


def is_trainable(module: Any) -> bool:
    """Tell whether AdaRound can train the rounding of a layer's weight: it runs the module by itself."""
    return is_observable(module) and "weight" in module._parameters


@contextmanager
def without_fast_path() -> Iterator[None]:
    """Let attention layers call their modules: in evaluation mode torch computes them in one operator otherwise.

    No exporter knows that operator, and no hook sees into it.
    """
    enabled = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(enabled)


@contextmanager
def hooked(module: torch.nn.Module, taps: Mapping[Tap, str], receive: Receiver) -> Iterator[None]:
    """Hand the values of taps to a receiver while the body runs the module; no hook stays behind.

    Args:
        module: the model.
        taps: the paths of the modules that read the values.
        receive: what gets them.
    """
    with ExitStack() as stack:
        stack.enter_context(without_fast_path())
        for tap, path in taps.items():
            stack.callback(register(module.get_submodule(path), tap, receive).remove)
        yield


def register(layer: torch.nn.Module, tap: Tap, receive: Receiver) -> Any:
    """Hook a layer's module and return the handle."""
    if not tap.hidden:

        def before(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module
            receive(tap, args[0] if args else kwargs["input"])

        return layer.register_forward_pre_hook(before, with_kwargs=True)

    def after(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        # What the steps read is the initial state, zeros if none is given, and the output of every step but the last.
        state = args[1] if len(args) > 1 else kwargs.get("hx")
        steps = output[0]
        axis = 1 if layer.batch_first and steps.ndim > 2 else 0
        initial = state[0] if isinstance(state, tuple) else state
        receive(tap, torch.zeros_like(steps.narrow(axis, 0, 1)) if initial is None else initial)
        receive(tap, steps.narrow(axis, 0, steps.shape[axis] - 1))

    # A hook of the user's may change the output; the steps do not see that.
    return layer.register_forward_hook(after, with_kwargs=True, prepend=True)
