"""Whether an exported model computes what its module computes."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from twinquant.errors import UnsupportedModelError, VerificationError
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.run import Pipeline
from twinquant_torch.tensors import to_array

__all__ = ["check_equal"]

_logger = logging.getLogger(__name__)

_MOST = {torch.float32: 1e-3, torch.float64: 1e-3, torch.float16: 5e-2, torch.bfloat16: 5e-2}
"""How much of an output's range the two may differ by: far more than the order of sums makes."""


def check_equal(
    graph: OnnxGraph, feeds: Mapping[str, npt.NDArray[Any]], expected: Sequence[torch.Tensor] | None, what: str
) -> None:
    """Refuse a model that does not compute what the module does, on one batch.

    The model is run once, in pieces, so that there is no second copy of its weights.

    Args:
        graph: the exported model, changed or not.
        feeds: the example inputs by name.
        expected: what the module gives for them; None: it gives something else than tensors, and nothing is compared.
        what: how messages call the model.

    Raises:
        UnsupportedModelError: it computes something else.
    """
    names = [value.name for value in graph.model.graph.output]
    if expected is None or len(names) != len(expected):
        _logger.info("%s is not compared with the module, whose outputs are not tensors only", what)
        return
    try:
        found = dict(Pipeline(graph, list(graph.model.graph.node), names).run(feeds))
    except VerificationError as error:
        _logger.warning(
            "%s was not compared with the module, and its fake-quant twin cannot be run on this machine either: %s",
            what,
            " ".join(str(error).split()),
        )
        return
    for name, tensor in zip(names, expected, strict=True):
        if name in found and tensor.dtype in _MOST:
            _compare(name, found[name], tensor, what)


def _compare(name: str, found: npt.NDArray[Any], tensor: torch.Tensor, what: str) -> None:
    if found.shape != tuple(tensor.shape):
        raise UnsupportedModelError(
            f"{what} does not compute what the module does: output {name!r} has shape {list(found.shape)} instead of "
            f"{list(tensor.shape)}; {_ADVICE}"
        )
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
    if largest > _MOST[tensor.dtype] * span:
        raise UnsupportedModelError(
            f"{what} does not compute what the module does: output {name!r} differs by up to {largest:.3g} on the "
            f"example inputs, where its values span {span:.3g}; {_ADVICE}"
        )


_ADVICE = (
    "the exporter has lost an option of a layer, or forward gives something else each time it is called: find the "
    "layer by exporting parts of the model, and replace it"
)
