"""Whether the shapes of a layer's weights and biases belong together."""

from __future__ import annotations

from collections.abc import Iterator

from twinquant.plan import LayerKind
from twinquant_onnx.constants import Constant

__all__ = ["shape_refusal"]

_GATES = {LayerKind.LSTM: 4, LayerKind.GRU: 3}


def shape_refusal(
    kind: LayerKind,
    weight: Constant | None,
    recurrence: Constant | None,
    bias: Constant | None,
    *,
    group: int,
    trans_b: bool,
    hidden_size: int | None,
) -> str | None:
    """Return which shape of a layer does not fit the others, or None if all do.

    Args:
        kind: what the layer computes.
        weight: its weight, of the right rank; None: it has none.
        recurrence: its recurrence weight (RNN).
        bias: its bias, if it has one.
        group: number of groups of a convolution.
        trans_b: a Gemm's weight is stored transposed.
        hidden_size: what an RNN states as its attribute, or None.
    """
    if weight is None:
        return None
    shape = weight.shape
    if kind in (LayerKind.CONV, LayerKind.CONV_TRANSPOSE) and (group < 1 or shape[0] % group):
        return f"its group is {group}, which does not fit its weight {weight.name!r} of shape {list(shape)}"
    if recurrence is not None and hidden_size not in (None, recurrence.shape[2]):
        return f"its hidden_size is {hidden_size}, but its recurrence weight has shape {list(recurrence.shape)}"
    for what, constant, expected in _expected(kind, weight, recurrence, bias, group):
        if constant.shape != expected:
            return f"its {what} {constant.name!r} has shape {list(constant.shape)}; {list(expected)} is expected"
    if kind is LayerKind.GEMM and bias is not None:
        columns = shape[0] if trans_b else shape[1]
        if len(bias.shape) > 2 or bias.shape[-1:] not in ((), (1,), (columns,)):
            wanted = f"one that broadcasts to [rows, {columns}] is expected"
            return f"its bias {bias.name!r} has shape {list(bias.shape)}; {wanted}"
    return None


def _expected(
    kind: LayerKind, weight: Constant, recurrence: Constant | None, bias: Constant | None, group: int
) -> Iterator[tuple[str, Constant, tuple[int, ...]]]:
    """Yield what a constant is, the constant, and the shape that it must have."""
    shape = weight.shape
    if kind is LayerKind.CONV and bias is not None:
        yield "bias", bias, shape[:1]
    elif kind is LayerKind.CONV_TRANSPOSE and bias is not None:
        yield "bias", bias, (shape[1] * group,)
    elif recurrence is not None:
        hidden = recurrence.shape[2]
        rows = _GATES[kind] * hidden
        yield "weight", weight, (1, rows, shape[2])
        yield "recurrence weight", recurrence, (1, rows, hidden)
        if bias is not None:
            yield "bias", bias, (1, 2 * rows)
