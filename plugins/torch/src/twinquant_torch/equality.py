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

__all__ = ["check_equal", "difference"]

_logger = logging.getLogger(__name__)

_MOST = {torch.float32: 1e-4, torch.float64: 1e-4, torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""How much of an output's range the two may differ by. The order of sums: up to 6e-7 in 11 networks for images."""

_MOST_TF32 = 1e-2
"""The same for float32 that a GPU multiplied with the precision of float16, as torch lets it by default."""

_MOST_INTEGERS = 1e-4
"""The share of the values of an integer or bool output that may differ.

What is made of floats by argmax, by comparing or by rounding changes with the order of their sums: with random weights,
none of 2 million pixels by argmax, 1 of 44 million values by comparing, 5 of a million by rounding. So a few pixels of
an image may differ, but no class of ten.
"""

_TYPES = re.compile(r"Type Error:.*tensor\((bfloat16|double)\)", re.DOTALL)


def check_equal(
    graph: OnnxGraph, feeds: Mapping[str, npt.NDArray[Any]], expected: Sequence[torch.Tensor] | None, what: str
) -> None:
    """Refuse a model that does not compute what the module does, on one batch.

    Args:
        graph: the exported model, changed or not.
        feeds: the example inputs by name.
        expected: what the module gives for them; None: it gives something else than tensors, and nothing is compared.
        what: how messages call the model.

    Raises:
        UnsupportedModelError: it computes something else, or ONNX Runtime cannot run it.
    """
    if problem := difference(graph, feeds, expected, what):
        raise UnsupportedModelError(
            f"{what} {problem}, on the example inputs; the exporter has lost an option of a layer, or forward gives "
            "something else each time it is called: find the layer by exporting parts of the model, and replace it"
        )


def difference(
    graph: OnnxGraph, feeds: Mapping[str, npt.NDArray[Any]], expected: Sequence[torch.Tensor] | None, what: str
) -> str:
    """Tell what a model does otherwise than its module, on one batch.

    The model is run once, in pieces, so that there is no second copy of its weights. Where ONNX Runtime has no kernel
    for a type of numbers, as for most of bfloat16, a warning says so, and that is no difference.

    Args:
        graph: the exported model, changed or not.
        feeds: a batch by the names of the inputs.
        expected: what the module gives for it; None: it gives something else than tensors, and nothing is compared.
        what: how messages call the model.

    Returns:
        The end of a sentence about the model; "": there is no difference.
    """
    names = [value.name for value in graph.model.graph.output]
    try:
        found = dict(Pipeline(graph, list(graph.model.graph.node), names).run(feeds))
    except VerificationError as error:
        reason = " ".join(str(error).split())
        if not _is_of_this_machine(error):
            return f"does not run: {reason}"
        _logger.warning(
            "%s was not compared with the module, and its fake-quant twin cannot be run on this machine either: %s; "
            "to have it run, export the model in float32 (model.float()), without torch.autocast in forward",
            what,
            reason,
        )
        return ""
    if expected is None or len(names) != len(expected):
        _logger.info("%s is not compared with the module, whose outputs are not tensors only", what)
        return ""
    problems = (
        _compare(name, found[name], tensor) for name, tensor in zip(names, expected, strict=True) if name in found
    )
    return next(filter(None, problems), "")


def _is_of_this_machine(error: VerificationError) -> bool:
    """Tell whether a model may be right, though ONNX Runtime does not run it."""
    return isinstance(error.__cause__, NotImplementedByRuntime) or bool(_TYPES.search(str(error)))


def _compare(name: str, found: npt.NDArray[Any], tensor: torch.Tensor) -> str:
    output = f"does not compute what the module does: output {name!r}"
    if found.shape != tuple(tensor.shape):
        return f"{output} has shape {list(found.shape)} instead of {list(tensor.shape)}"
    if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype not in _MOST):
        return ""
    if not tensor.is_floating_point():
        wrong = int(np.count_nonzero(found != to_array(tensor)))
        return f"{output} has {wrong} other values of {found.size}" if wrong > _MOST_INTEGERS * found.size else ""
    exact, values = to_array(tensor).astype(np.float64), found.astype(np.float64)
    finite = np.isfinite(exact) & np.isfinite(values)
    if not np.array_equal(exact[~finite], values[~finite], equal_nan=True):
        return f"{output} has NaN or infinity in other places"
    if not finite.any():
        return ""
    exact, values = exact[finite], values[finite]
    span = max(float(exact.max() - exact.min()), float(np.abs(exact).max()))
    largest = float(np.abs(values - exact).max())
    if largest > _most(tensor) * span:
        return f"{output} differs by up to {largest:.3g} where its values span {span:.3g}"
    return ""


def _most(tensor: torch.Tensor) -> float:
    on_tf32 = tensor.is_cuda and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)
    return _MOST_TF32 if on_tf32 and tensor.dtype == torch.float32 else _MOST[tensor.dtype]
