"""Whether an exported model computes what its module computes."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import NotImplemented as NotImplementedByRuntime

from twinquant.errors import UnsupportedModelError, VerificationError
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.run import Pipeline
from twinquant_torch.tensors import to_array

__all__ = ["check_equal"]

_logger = logging.getLogger(__name__)

_MOST = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""How much of an output's range the two may differ by: more than the order of sums makes."""

_MOST_TF32 = 1e-2
"""The same for float32 that a GPU multiplied with the precision of float16, as torch lets it by default."""

_MOST_INTEGERS = 1e-4
"""The share of the values of an integer or bool output that may differ.

What is chosen from floats that are almost equal, as by argmax, changes with the order of sums. Measured on random scores
of 21 classes: less than 1 pixel in a million; so one wrong value of a small output is an error.
"""

_TYPES = re.compile(r"Type Error:.*tensor\((bfloat16|double)\)", re.DOTALL)


def check_equal(
    graph: OnnxGraph, feeds: Mapping[str, npt.NDArray[Any]], expected: Sequence[torch.Tensor] | None, what: str
) -> None:
    """Refuse a model that does not compute what the module does, on one batch.

    The model is run once, in pieces, so that there is no second copy of its weights. Where ONNX Runtime has no kernel
    for a type of numbers, as for most of bfloat16, a warning says so.

    Args:
        graph: the exported model, changed or not.
        feeds: the example inputs by name.
        expected: what the module gives for them; None: it gives something else than tensors, and nothing is compared.
        what: how messages call the model.

    Raises:
        UnsupportedModelError: it computes something else, or ONNX Runtime cannot run it.
    """
    names = [value.name for value in graph.model.graph.output]
    try:
        found = dict(Pipeline(graph, list(graph.model.graph.node), names).run(feeds))
    except VerificationError as error:
        reason = " ".join(str(error).split())
        if not _is_of_this_machine(error):
            raise UnsupportedModelError(f"{what} does not run: {reason}; {_ADVICE}") from error
        _logger.warning(
            "%s was not compared with the module, and its fake-quant twin cannot be run on this machine either: %s; "
            "to have it run, export the model in float32 (model.float()), without torch.autocast in forward",
            what,
            reason,
        )
        return
    if expected is None or len(names) != len(expected):
        _logger.info("%s is not compared with the module, whose outputs are not tensors only", what)
        return
    for name, tensor in zip(names, expected, strict=True):
        if name in found:
            _compare(name, found[name], tensor, what)


def _is_of_this_machine(error: VerificationError) -> bool:
    """Tell whether a model may be right, though ONNX Runtime does not run it."""
    return isinstance(error.__cause__, NotImplementedByRuntime) or bool(_TYPES.search(str(error)))


def _compare(name: str, found: npt.NDArray[Any], tensor: torch.Tensor, what: str) -> None:
    if found.shape != tuple(tensor.shape):
        raise UnsupportedModelError(
            f"{what} does not compute what the module does: output {name!r} has shape {list(found.shape)} instead of "
            f"{list(tensor.shape)}; {_ADVICE}"
        )
    if tensor.dtype not in _MOST:
        if not tensor.is_complex():
            _compare_integers(name, found, to_array(tensor), what)
        return
    exact, values = to_array(tensor).astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(exact) & np.isfinite(values)
    if not np.array_equal(exact[~finite], values[~finite], equal_nan=True):
        raise UnsupportedModelError(
            f"{what} does not compute what the module does: output {name!r} has NaN or infinity in other places; "
            f"{_ADVICE}"
        )
    if not finite.any():
        return
    exact, values = exact[finite], values[finite]
    span = max(float(exact.max() - exact.min()), float(np.abs(exact).max()))
    largest = float(np.abs(values - exact).max())
    if largest > _most(tensor) * span:
        raise UnsupportedModelError(
            f"{what} does not compute what the module does: output {name!r} differs by up to {largest:.3g} on the "
            f"example inputs, where its values span {span:.3g}; {_ADVICE}"
        )


def _most(tensor: torch.Tensor) -> float:
    on_tf32 = tensor.is_cuda and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)
    return _MOST_TF32 if on_tf32 and tensor.dtype == torch.float32 else _MOST[tensor.dtype]


def _compare_integers(name: str, found: npt.NDArray[Any], exact: npt.NDArray[Any], what: str) -> None:
    wrong = int(np.count_nonzero(found != exact))
    if wrong > _MOST_INTEGERS * exact.size:
        raise UnsupportedModelError(
            f"{what} does not compute what the module does: output {name!r} has {wrong} other values of {exact.size} "
            f"on the example inputs; {_ADVICE}"
        )


_ADVICE = (
    "the exporter has lost an option of a layer, or forward gives something else each time it is called: find the "
    "layer by exporting parts of the model, and replace it"
)
