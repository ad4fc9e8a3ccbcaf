"""PROOF THAT TWINS AGREE: the report, the exact integer layers and the rules of judgement; NumPy only."""

from twinquant.verification.integer_layers import Accumulator, Window, convolve, convolve_transposed, multiply
from twinquant.verification.judge import (
    RELATIVE_TOLERANCE,
    Judgement,
    allowed_difference,
    judge_integers,
    judge_values,
    largest_difference,
    overflow_note,
)
from twinquant.verification.report import LayerVerdict, VerifyReport

__all__ = [
    "RELATIVE_TOLERANCE",
    "Accumulator",
    "Judgement",
    "LayerVerdict",
    "VerifyReport",
    "Window",
    "allowed_difference",
    "convolve",
    "convolve_transposed",
    "judge_integers",
    "judge_values",
    "largest_difference",
    "multiply",
    "overflow_note",
]
