"""Everything that is accumulated about one watch, pass after pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.calibration.balance import ChannelMaxObserver, balance_factors, channel_axis_of
from twinquant.calibration.factory import make_observer, restore_observer
from twinquant.calibration.observer import Accumulated, ActivationFactors, Stage, State
from twinquant.calibration.watches import Watch
from twinquant.errors import CalibrationError

__all__ = ["Station"]

Float32Array = npt.NDArray[np.float32]

_OBSERVER = "observer."


class Station:
    """One watch's observers: the one of balance factors, where the watch asks for them, then the one of the range.

    Attributes:
        watch: what is watched.
        balance: float32 `(C,)`: the balance factors, once they are known; None where there are none.
        finished: no further pass is needed.
    """

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.balance: Float32Array | None = None
        self.finished = False
        self._channels = None if watch.migration_strength is None else ChannelMaxObserver(watch.channel_axis)
        self._observer = make_observer(watch.options)

    @property
    def passes(self) -> int:
        """How many passes are over."""
        return self._observer.passes + (self.balance is not None)

    @property
    def most_passes(self) -> int:
        """How many passes there may be in all."""
        return len(self._observer.stages) + (self.watch.migration_strength is not None)

    def observe(self, values: npt.NDArray[Any]) -> None:
        """Take values of one batch.

        Raises:
            CalibrationError: they hold NaN or infinity, or have no channels, or other ones, where they are balanced.
        """
        if self._channels is not None:
            self._channels.observe(values)
            return
        if values.size and self.balance is not None:
            self._check_channels(values.shape, self.balance.size)
        multipliers = self.multipliers(values.ndim) if values.size else None
        if multipliers is not None:
            with np.errstate(over="ignore"):
                values = values.astype(np.float32, copy=False) * multipliers
        self._observer.observe(values)

    @property
    def stage(self) -> Stage | None:
        """What this pass fills with values, balanced ones where there are balance factors.

        None: the pass looks for the largest magnitudes of channels, or no further pass is needed.
        """
        return self._observer.stage if self._channels is None else None

    @property
    def channel_ends(self) -> bool:
        """Whether this pass needs to see no more than the smallest and the largest value of every channel."""
        return self._channels is not None

    def multipliers(self, ndim: int) -> Float32Array | None:
        """Return what balances values of this many axes: float32, in a shape that broadcasts; None: nothing does.

        Raises:
            CalibrationError: values of so few axes have no channels.
        """
        if self.balance is None:
            return None
        shape = [1] * ndim
        axis = self.watch.channel_axis
        if not -ndim <= axis < ndim:
            raise CalibrationError(f"the activation has {ndim} axes: no axis {axis}, where its channels should be")
        shape[axis] = -1
        # The twins multiply by the reciprocal, too.
        with np.errstate(over="ignore"):
            reciprocal: Float32Array = np.float32(1) / self.balance
        return reciprocal.reshape(shape)

    def add(self, part: Accumulated) -> None:
        """Take values that were accumulated elsewhere, in a `fresh()` one of this station's `stage`."""
        self._observer.add(part)

    def merge(self, other: Station) -> None:
        """Add what another station of the same watch took in the same pass."""
        if self._channels is not None and other._channels is not None:
            self._channels.merge(other._channels)
        else:
            self._observer.merge(other._observer)

    def end_pass(self, weight_maxima: Callable[[str], Float32Array]) -> None:
        """End a pass; `finished` tells whether it was the last.

        Args:
            weight_maxima: gives the largest magnitude of a layer's weight for each input channel.

        Raises:
            CalibrationError: nothing was observed, or it gives no factors.
        """
        if self._channels is not None and self.watch.migration_strength is not None:
            maxima = self._channels.maxima()
            (layer,) = self.watch.layers
            self.balance = balance_factors(maxima, weight_maxima(layer), self.watch.migration_strength)
            self._channels = None
        else:
            self.finished = not self._observer.end_pass()

    def factors(self) -> ActivationFactors:
        """Return the result of a finished station."""
        return self._observer.factors()

    @property
    def constant(self) -> float | None:
        """The value that the activation has everywhere, in all batches; None where its values differ."""
        return self._observer.constant

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value that was observed, after balancing; inf and -inf before any was."""
        return self._observer.range

    def fork(self) -> Station:
        """Return a station in the same pass that has taken nothing in it, to observe a part of the data."""
        twin = Station(self.watch)
        twin.balance, twin.finished = self.balance, self.finished
        if self._channels is None:
            twin._channels = None
        twin._observer = self._observer.fork()
        return twin

    def state(self) -> State:
        """Return everything this station holds, to be stored with `numpy.savez`."""
        state = {f"{_OBSERVER}{name}": array for name, array in self._observer.state().items()}
        state["finished"] = np.array(self.finished)
        if self.balance is not None:
            state["balance"] = self.balance
        if self._channels is not None:
            state["maxima"] = self._channels.state()["maxima"]
        return state

    @classmethod
    def restored(cls, watch: Watch, state: Mapping[str, npt.NDArray[Any]]) -> Station:
        """Return the station that `state` was asked of."""
        station = cls(watch)
        station.finished = bool(state["finished"])
        station.balance = state.get("balance")
        if station._channels is not None and "maxima" in state:
            station._channels.restore({"maxima": state["maxima"]})
        else:
            station._channels = None
        observed = {name.removeprefix(_OBSERVER): array for name, array in state.items() if name.startswith(_OBSERVER)}
        station._observer = restore_observer(watch.options, observed)
        return station

    def _check_channels(self, shape: Sequence[int], expected: int) -> None:
        axis = self.watch.channel_axis
        channels = shape[channel_axis_of(shape, axis)]
        if channels != expected:
            raise CalibrationError(
                f"the activation has shape {tuple(shape)}: {channels} channels along axis {axis}, its balance factors "
                f"are for {expected}"
            )
