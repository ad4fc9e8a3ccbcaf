"""The rules by which a simulated layer and the fake-quant twin's layer agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.verification.integer_layers import EXACT_LIMIT, Accumulator

__all__ = [
    "RELATIVE_TOLERANCE",
    "Judgement",
    "allowed_difference",
    "judge_integers",
    "judge_values",
    "largest_difference",
    "overflow_note",
]

RELATIVE_TOLERANCE = 1e-6
"""Allowed difference where float32 sums are inexact, as a part of (sum|x * w| + |bias|) * scale."""

_INT32_MAX = 2**31 - 1

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Judgement:
    """What the comparison of one tensor gave.

    Attributes:
        problem: what disagrees, as a sentence, or None.
        difference: the largest absolute difference.
        tolerance: what is allowed at the place of `difference`.
    """

    problem: str | None
    difference: float
    tolerance: float


def allowed_difference(accumulator: Accumulator, scale: Array) -> Array:
    """Return how far the fake-quant twin's float32 output may be from the dequantized accumulator.

    Args:
        accumulator: the exact result.
        scale: float32, broadcasts over the result: from accumulator to real values.

    Returns:
        float64, broadcasts over the result: 0 where `sum|x * w| + |bias|` < 2^24, for then float32 computes exactly in
        any order; else `RELATIVE_TOLERANCE * (sum|x * w| + |bias|) * scale`.
    """
    if accumulator.magnitude is None:
        return np.zeros((), np.float64)
    magnitude = accumulator.magnitude.astype(np.float64, copy=False)
    return np.where(magnitude < EXACT_LIMIT, 0.0, RELATIVE_TOLERANCE * magnitude * scale.astype(np.float64))


def overflow_note(accumulator: Accumulator) -> str | None:
    """Say that an accumulator leaves int32, in which the device adds, or return None."""
    largest = float(np.abs(accumulator.total).max(initial=0.0))
    if largest <= _INT32_MAX:
        return None
    return f"the accumulator reaches {largest:.0f}: a device that accumulates in int32 overflows on this input"


def judge_integers(what: str, simulated: Array, fake_quant: Array) -> str | None:
    """Compare integers that must be identical; return what disagrees as a sentence, or None.

    Args:
        what: names the tensor in the sentence.
        simulated: integer-valued, from the deploy twin.
        fake_quant: integer-valued floating point, from the fake-quant twin.
    """
    if simulated.shape != fake_quant.shape:
        return f"{what}: shape {simulated.shape} in the deploy twin, {fake_quant.shape} in the fake-quant twin"
    different = simulated != fake_quant
    count = int(np.count_nonzero(different))
    if not count:
        return None
    place = tuple(int(i) for i in np.unravel_index(int(np.argmax(different)), different.shape))
    return (
        f"{what}: {count} of {different.size} integers differ; at {place} the deploy twin has "
        f"{float(simulated[place]):g}, the fake-quant twin {float(fake_quant[place]):g}"
    )


def judge_values(what: str, simulated: Array, fake_quant: Array, allowed: Array) -> Judgement:
    """Compare an output with a tolerance for each value; equal infinities and NaNs agree, and so do 0.0 and -0.0.

    Args:
        what: names the tensor in the sentence.
        simulated: floating point, from the deploy twin.
        fake_quant: floating point, from the fake-quant twin.
        allowed: float64, broadcasts over the output; 0 demands equality.
    """
    if simulated.shape != fake_quant.shape:
        text = f"{what}: shape {simulated.shape} in the deploy twin, {fake_quant.shape} in the fake-quant twin"
        return Judgement(text, float("inf"), 0.0)
    difference = _differences(simulated, fake_quant)
    if not difference.size:
        return Judgement(None, 0.0, 0.0)
    limit = np.broadcast_to(allowed, difference.shape)
    worst = int(np.argmax(difference))
    judgement = Judgement(None, float(difference.flat[worst]), float(limit.flat[worst]))
    excess = ~(difference <= limit)
    count = int(np.count_nonzero(excess))
    if not count:
        return judgement
    flat = int(np.argmax(np.where(excess, difference, -1.0)))
    place = tuple(int(i) for i in np.unravel_index(flat, difference.shape))
    text = (
        f"{what}: {count} of {difference.size} values differ too much; at {place} the deploy twin has "
        f"{float(simulated[place])!r}, the fake-quant twin {float(fake_quant[place])!r}, "
        f"allowed is {float(limit[place]):.3g}"
    )
    return Judgement(text, judgement.difference, judgement.tolerance)


def largest_difference(one: Array, other: Array) -> float:
    """Return the largest absolute difference of two arrays of one shape; infinite where only one is NaN."""
    return float(_differences(one, other).max(initial=0.0))


def _differences(one: Array, other: Array) -> npt.NDArray[np.float64]:
    wide, reference = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(invalid="ignore"):
        difference = np.abs(wide - reference)
    same = (wide == reference) | (np.isnan(wide) & np.isnan(reference))
    # An operation on arrays without an axis gives a scalar, in which nothing can be assigned.
    return np.asarray(np.where(same, 0.0, np.where(np.isnan(difference), np.inf, difference)))
