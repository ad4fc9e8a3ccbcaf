"""Running a module once on its example inputs: whether it runs, what it gives, and how often it calls its modules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from twinquant.errors import DataError
from twinquant_torch.hooks import without_fast_path
from twinquant_torch.working_copy import WorkingCopy, cloned

__all__ = ["Probe", "probe"]


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """What a run on the example inputs shows.

    Attributes:
        outputs: the tensors of the output, in their order; None: it holds something else as well.
        calls: how often each module was called, by the first of its paths.
    """

    outputs: tuple[torch.Tensor, ...] | None
    calls: Mapping[str, int]


def probe(copy: WorkingCopy, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Probe:
    """Run a module; what it says of inputs that it does not take is clearer than what the exporters say.

    Raises:
        DataError: the module does not run on the inputs.
    """
    calls: Counter[str] = Counter()
    args, kwargs = cloned((args, dict(kwargs)))
    with copy.undisturbed() as module:
        handles = [
            inner.register_forward_pre_hook(_counting(calls, path))
            for path, inner in module.named_modules()
            if not isinstance(inner, torch.jit.ScriptModule)
        ]
        try:
            with torch.no_grad(), without_fast_path():
                output = module(*args, **kwargs)
        except Exception as error:  # forward is the user's code
            reason = str(error) or "no reason is given"
            kind = "" if isinstance(error, RuntimeError) else f"{type(error).__name__}: "
            raise DataError(
                f"example_inputs: {type(module).__name__} does not run on them: {kind}{reason}; give one batch as "
                "forward takes it"
            ) from error
        finally:
            for handle in handles:
                handle.remove()
    leaves = [leaf for leaf in pytree.tree_leaves(output) if leaf is not None]
    only_tensors = all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    return Probe(tuple(leaf.detach() for leaf in leaves) if only_tensors else None, calls)


def _counting(calls: Counter[str], path: str) -> Any:
    def before(module: Any, args: Any) -> None:
        del module, args
        calls[path] += 1

    return before
