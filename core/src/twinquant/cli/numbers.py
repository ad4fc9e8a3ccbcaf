"""How factors and differences are written in the tables."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["count", "number", "spread"]

_ABSENT = "-"


def number(value: float | None) -> str:
    """Write one number with six significant digits; a dash where there is none."""
    return _ABSENT if value is None else f"{value:.6g}"


def spread(values: npt.NDArray[np.float32]) -> str:
    """Write how many values there are and from where to where they go: `16 of 0.01 to 0.02`; one value as it is."""
    if values.size <= 1:
        return number(float(values[0])) if values.size else _ABSENT
    return f"{values.size} of {number(float(values.min()))} to {number(float(values.max()))}"


def count(n: int, what: str) -> str:
    """Write a number of things: `1 layer`, `2 layers`."""
    return f"{n} {what}" if n == 1 else f"{n} {what}s"
