"""Running a module once on its example inputs: whether it runs, what it gives, and how often it calls its modules."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from twinquant.errors import DataError
from twinquant_torch.hooks import without_fast_path
from twinquant_torch.working_copy import WorkingCopy, cloned

__all__ = ["Probe", "probe", "run_once", "tensors_of"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """What a run on the example inputs shows.

    Attributes:
        outputs: the tensors of the output, in their order; None: it holds something else as well.
        output_spec: how the output is nested.
        calls: how often each module was called, by the first of its paths; None: that cannot be counted.
    """

    outputs: tuple[torch.Tensor, ...] | None
    output_spec: Any
    calls: Mapping[str, int] | None


def probe(copy: WorkingCopy, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Probe:
    """Run a module; what it says of inputs that it does not take is clearer than what the exporters say.

    Args:
        copy: what is run: not itself, but copies of it.
        args: positional arguments of `forward`.
        kwargs: its keyword arguments.

    Raises:
        DataError: the module does not run on the inputs.
    """
    calls: Counter[str] = Counter()
    try:
        return _probe(run_once(copy.anew(), args, kwargs, calls), calls)
    except Exception as error:  # noqa: BLE001  forward is the user's code
        failure = error
    # torch.cond, for one, takes no function with side effects, which is what counting is.
    try:
        return _probe(run_once(copy.anew(), args, kwargs), None)
    except Exception as error:
        _logger.debug("the module does not run without counting calls, either", exc_info=error)
    reason = str(failure) or "no reason is given"
    kind = "" if isinstance(failure, RuntimeError) else f"{type(failure).__name__}: "
    raise DataError(
        f"example_inputs: {type(copy.module).__name__} does not run on them: {kind}{reason}; give one batch as "
        "forward takes it"
    ) from failure


def run_once(
    copy: WorkingCopy, args: tuple[Any, ...], kwargs: Mapping[str, Any], calls: Counter[str] | None = None
) -> Any:
    """Run a module on copies of its arguments, and return what it gives.

    Args:
        copy: the module; its buffers may change.
        args: positional arguments of `forward`.
        kwargs: its keyword arguments.
        calls: where calls of modules are counted, by the first of their paths; None: nowhere.
    """
    args, kwargs = cloned((args, dict(kwargs)))
    with copy.undisturbed() as module:
        handles = []
        if calls is not None:
            handles = [
                inner.register_forward_pre_hook(_counting(calls, path)) for path, inner in module.named_modules()
            ]
        try:
            with torch.no_grad(), without_fast_path():
                return module(*args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()


def tensors_of(output: Any) -> tuple[torch.Tensor, ...] | None:
    """Return the tensors of an output, in their order; None: it holds something else as well."""
    leaves = [leaf for leaf in pytree.tree_leaves(output) if leaf is not None]
    only_tensors = all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    return tuple(leaf.detach() for leaf in leaves) if only_tensors else None


def _probe(output: Any, calls: Mapping[str, int] | None) -> Probe:
    return Probe(tensors_of(output), pytree.tree_structure(output), calls)


def _counting(calls: Counter[str], path: str) -> Any:
    def before(module: Any, args: Any) -> None:
        del module, args
        calls[path] += 1

    return before
