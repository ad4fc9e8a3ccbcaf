"""Balance factors (DMQ): moving the range of uneven activation channels into the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.errors import ArgumentError, CalibrationError

__all__ = ["ChannelMaxObserver", "balance_factors", "channel_axis_of"]

Float32Array = npt.NDArray[np.float32]
State = dict[str, npt.NDArray[Any]]

_LIMIT = 2.0**23


def balance_factors(
    activation_max: npt.NDArray[Any], weight_max: npt.NDArray[Any], migration_strength: float = 0.5
) -> Float32Array:
    """Return what each channel of an activation is divided by, and the weights of that channel are multiplied by.

    `amax^m / wmax^(1 - m)`, cut to [2^-23, 2^23]. A channel whose activations are all 0 is given the factor that makes
    its weights as large as the largest balanced weights; one whose weights are all 0, the factor that makes its
    activations as large as the largest balanced ones: neither widens a range. Without any live channel, and where both
    are 0, the factor is 1.

    Args:
        activation_max: `(C,)`, >= 0: largest magnitude of each input channel (`ChannelMaxObserver`).
        weight_max: `(C,)`, >= 0: largest magnitude of the weights of each input channel (`channel_maxima`).
        migration_strength: m, in [0.2, 0.8]: how much of the unevenness the weights take over.

    Returns:
        float32 `(C,)`.

    Raises:
        CalibrationError: the activation has another number of channels than the weight.
        ArgumentError: m is out of range.

    Source:
        measured on the reference implementation, channels without activations included; the formula is that of G. Xiao
        et al., SmoothQuant (2023), with its alpha = m.
    """
    if activation_max.shape != weight_max.shape:
        raise CalibrationError(
            f"{activation_max.size} channels of the activation do not match {weight_max.size} of the weight; leave the "
            "layer's dmq_migration_strength out"
        )
    if not 0.2 <= migration_strength <= 0.8:
        raise ArgumentError(f"migration_strength: got {migration_strength!r}, expected a number in [0.2, 0.8]")
    activation, weight = activation_max.astype(np.float64), weight_max.astype(np.float64)
    factors = np.ones(activation.shape)
    live = (activation > 0) & (weight > 0)
    if live.any():
        factors[live] = activation[live] ** migration_strength / weight[live] ** (1.0 - migration_strength)
        silent, weightless = (activation == 0) & (weight > 0), (activation > 0) & (weight == 0)
        factors[silent] = (factors * weight)[live].max() / weight[silent]
        factors[weightless] = activation[weightless] / (activation / factors)[live].max()
    return np.clip(factors, 1.0 / _LIMIT, _LIMIT).astype(np.float32)


def channel_axis_of(shape: Sequence[int], axis: int) -> int:
    """Return on which axis an activation has its channels, counted from the front.

    Args:
        shape: of the activation.
        axis: the channel axis; negative: counted from the end.

    Raises:
        CalibrationError: it has no such axis.
    """
    if not -len(shape) <= axis < len(shape):
        raise CalibrationError(
            f"the activation has shape {tuple(shape)}: no axis {axis}, where its channels should be; leave the layer's "
            "dmq_migration_strength out"
        )
    return axis % len(shape)


class ChannelMaxObserver:
    """The largest magnitude of each channel of an activation, over one pass; mergeable, in any order.

    Args:
        axis: the channel axis; negative: counted from the end, so that activations may lack the batch axis.
    """

    def __init__(self, axis: int = 1) -> None:
        self.axis = axis
        self._maxima: Float32Array | None = None

    def observe(self, values: npt.NDArray[Any]) -> None:
        """Take the values of one batch.

        Args:
            values: any type that converts to float32.

        Raises:
            CalibrationError: a value is NaN or infinite, there is no such axis, or there are not as many channels as in
                earlier batches.
        """
        if not values.size:
            return
        channels = channel_axis_of(values.shape, self.axis)
        axes = tuple(axis for axis in range(values.ndim) if axis != channels)
        with np.errstate(over="ignore"):
            high = values.max(axis=axes).astype(np.float32)
            low = values.min(axis=axes).astype(np.float32)
        maxima: Float32Array = np.maximum(high, -low) + np.float32(0.0)
        if not np.isfinite(maxima).all():
            raise CalibrationError("the activation holds NaN or infinity; it gives no balance factors")
        self._take(maxima)

    def merge(self, other: ChannelMaxObserver) -> None:
        """Add what another observer of the same tensor took."""
        if other._maxima is not None:
            self._take(other._maxima)

    def maxima(self) -> Float32Array:
        """Return the largest magnitudes: float32 `(C,)`.

        Raises:
            CalibrationError: no value was observed.
        """
        if self._maxima is None:
            raise CalibrationError("no value was observed; calibration needs at least one batch that is not empty")
        return self._maxima

    def state(self) -> State:
        """Return everything this observer holds, to be stored with `numpy.savez` and given to `restore`."""
        return {"maxima": np.zeros(0, np.float32) if self._maxima is None else self._maxima}

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become the observer that `state` was asked of."""
        self._maxima = state["maxima"].copy() if state["maxima"].size else None

    def _take(self, maxima: Float32Array) -> None:
        if self._maxima is None:
            self._maxima = maxima.copy()
        elif self._maxima.shape != maxima.shape:
            raise CalibrationError(
                f"the activation has {maxima.size} channels along axis {self.axis}, earlier ones had "
                f"{self._maxima.size}; balance factors need a fixed number of channels"
            )
        else:
            self._maxima = np.maximum(self._maxima, maxima)
