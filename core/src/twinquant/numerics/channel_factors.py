"""What a normalization does to every channel: multiply by a factor and add a summand, both constant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["NOT_FINITE", "ChannelFactors"]

Float64Array = npt.NDArray[np.float64]

NOT_FINITE = "its factors are not finite (a negative variance, NaN or infinity)"
"""Why a node with other factors is not folded, as the end of a sentence."""


@dataclass(frozen=True, slots=True, eq=False)
class ChannelFactors:
    """`y = scale * x + shift` for every channel.

    Attributes:
        scale: float64 `(C,)`.
        shift: float64 `(C,)`.
    """

    scale: Float64Array
    shift: Float64Array

    @staticmethod
    def identity(channels: int) -> ChannelFactors:
        """Return what changes nothing."""
        return ChannelFactors(np.ones(channels), np.zeros(channels))

    def then(self, other: ChannelFactors) -> ChannelFactors:
        """Return what this one and another one behind it do together."""
        with np.errstate(over="ignore", invalid="ignore"):
            return ChannelFactors(self.scale * other.scale, self.shift * other.scale + other.shift)

    @property
    def finite(self) -> bool:
        """Whether all numbers stay finite in float32, which weights and biases are."""
        with np.errstate(over="ignore"):
            both = np.concatenate([self.scale, self.shift]).astype(np.float32)
        return bool(np.isfinite(both).all())
