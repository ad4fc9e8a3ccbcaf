"""What every observer is: a streaming, mergeable accumulator that ends with the factors of one activation."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from twinquant.calibration.options import ObserverOptions
from twinquant.calibration.scratch import BLOCK
from twinquant.errors import ArgumentError, CalibrationError

__all__ = ["Accumulated", "ActivationFactors", "Float32Array", "Observer", "Stage", "State"]

Float32Array = npt.NDArray[np.float32]
State = dict[str, npt.NDArray[Any]]

SelfStage = TypeVar("SelfStage", bound="Stage")


@dataclass(frozen=True, slots=True)
class ActivationFactors:
    """What an activation is quantized with.

    Attributes:
        scale: float32 value, in (1.19e-7, 1 / 1.19e-7).
        offset: the integer that stands for 0.0, within the signed integers of `num_bits` bits.
        num_bits: 4, 8 or 16.
    """

    scale: float
    offset: int
    num_bits: int


class Stage(ABC):
    """What one pass over the data accumulates, in a state whose size does not depend on how much data there is.

    Only operations whose result does not depend on their order are allowed on values: minimum, maximum, selection, and
    sums of integers. A running sum of floats is not one of them.
    """

    @abstractmethod
    def take(self, block: Float32Array, low: float, high: float) -> None:
        """Add values.

        Args:
            block: float32, `(n,)`, 0 < n, finite; read only.
            low: their minimum.
            high: their maximum.
        """

    @abstractmethod
    def merge(self: SelfStage, other: SelfStage) -> None:
        """Add what another stage with the same terms accumulated; `other` is left as it is."""

    @abstractmethod
    def arrays(self) -> State:
        """Return everything accumulated; equal for equal data, however that was cut up and ordered."""

    @classmethod
    @abstractmethod
    def restore(cls: type[SelfStage], arrays: Mapping[str, npt.NDArray[Any]]) -> SelfStage:
        """Return the stage that `arrays` was asked of."""

    @abstractmethod
    def fresh(self: SelfStage) -> SelfStage:
        """Return a stage with the same terms that has taken nothing."""

    def terms(self) -> tuple[Any, ...]:
        """Return what was settled before this pass took anything; only stages with equal terms can be merged."""
        return ()

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """How much memory is taken by what this stage accumulates in; not by what it shares with its `fresh()` ones."""


@dataclass(frozen=True, slots=True, eq=False)
class Accumulated:
    """What some values come to in one pass, when they were not shown to the observer one by one.

    Whoever has values where NumPy cannot see them, on an accelerator, counts them there and hands this over: it is
    smaller than they are.

    Attributes:
        stage: what was accumulated.
        count: how many values there were, > 0; all of them finite.
        low: their minimum, 0.0 rather than -0.0.
        high: their maximum, likewise.
    """

    stage: Stage
    count: int
    low: float
    high: float


class Observer(ABC):
    """Watches the values of one tensor in one or more passes over the data and ends with its factors.

    The factors are the same, bit for bit, for the same values: whatever the size and order of the batches, and however
    the data is divided between observers that are merged.

    One pass: `observe` every batch, then `end_pass`. While that returns True, the data is gone through again.
    Several processes: each observes a part; one merges them all, ends the pass, and hands its `state()` around for the
    next one, which starts from `fork()`s of the restored observer. An observer that raised CalibrationError is of no
    further use.

    Args:
        options: how the factors are found.
    """

    stages: ClassVar[tuple[type[Stage], ...]] = ()
    """What the passes accumulate, the first pass first."""

    def __init__(self, options: ObserverOptions) -> None:
        self.options = options
        self.passes = 0
        self._count = 0
        self._low, self._high = np.inf, -np.inf
        self._total: int | None = None
        self._stage: Stage | None = self.first_stage()
        self._factors: ActivationFactors | None = None

    @abstractmethod
    def first_stage(self) -> Stage:
        """Return what the first pass fills."""

    @abstractmethod
    def next_stage(self, stage: Stage, count: int) -> Stage | ActivationFactors:
        """Return what the next pass fills, or the factors if none is needed.

        Args:
            stage: what the pass that just ended filled.
            count: how many values it took.
        """

    def observe(self, values: npt.NDArray[Any]) -> None:
        """Take the values of one batch in the current pass.

        Args:
            values: any type that converts to float32, any shape, may be empty.

        Raises:
            CalibrationError: a value is NaN or infinite (in float32). The message names neither layer nor batch: the
                caller knows them.
        """
        if self._stage is None:
            raise ArgumentError("this observer has its factors; observe with a new one")
        flat = np.asarray(values).reshape(-1)
        for start in range(0, flat.size, BLOCK):
            with np.errstate(over="ignore"):
                block = flat[start : start + BLOCK].astype(np.float32, copy=False)
            # Adding 0.0 makes -0.0 and 0.0, which compare equal, the same bits.
            low, high = float(block.min()) + 0.0, float(block.max()) + 0.0
            if not (np.isfinite(low) and np.isfinite(high)):
                raise CalibrationError(_not_finite(block))
            self._low, self._high = min(self._low, low), max(self._high, high)
            self._stage.take(block, low, high)
        self._count += flat.size

    @property
    def stage(self) -> Stage | None:
        """What the current pass fills, to be left as it is; None: the factors are known."""
        return self._stage

    def add(self, part: Accumulated) -> None:
        """Take values that were accumulated elsewhere in the current pass, as if each had been observed here.

        Args:
            part: its stage is a `fresh()` one of this observer's `stage`, filled.

        Raises:
            ArgumentError: its stage belongs to another pass or another algorithm.
        """
        self._add(part.stage, part.count, part.low, part.high)

    def merge(self, other: Observer) -> None:
        """Add what another observer took in the same pass; `other` is left as it is.

        Raises:
            ArgumentError: the two have different options or are in different passes.
        """
        if self.options != other.options or self.passes != other.passes or self._total != other._total:
            raise ArgumentError(
                f"cannot merge an observer of {other.options!r} in pass {other.passes + 1} into one of "
                f"{self.options!r} in pass {self.passes + 1}"
            )
        self._add(other._stage, other._count, other._low, other._high)

    def end_pass(self) -> bool:
        """End the current pass; True asks for another pass over the same data.

        Raises:
            CalibrationError: no value was observed, this pass had not as many values as the first, or the values are
                too large to be quantized.
        """
        if self._stage is None:
            return False
        if self._count == 0:
            raise CalibrationError("no value was observed; calibration needs at least one batch that is not empty")
        if self._total is not None and self._count != self._total:
            raise CalibrationError(
                f"pass {self.passes + 1} over the data had {self._count:,} values, the first had {self._total:,}; "
                "every pass must go through the same data"
            )
        following = self.next_stage(self._stage, self._count)
        self.passes += 1
        self._total, self._count = self._count, 0
        if isinstance(following, ActivationFactors):
            self._stage, self._factors = None, following
            return False
        self._stage = following
        return True

    def factors(self) -> ActivationFactors:
        """Return the result.

        Raises:
            ArgumentError: passes are still to be made.
        """
        if self._factors is None:
            raise ArgumentError("this observer has no factors yet; go through the data until end_pass() returns False")
        return self._factors

    @property
    def constant(self) -> float | None:
        """The value that every observed value has; None where they differ, or there is none."""
        return self._low if self._low == self._high else None

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value that was observed; inf and -inf before any was."""
        return self._low, self._high

    def fork(self) -> Observer:
        """Return an observer that is in the same pass and has taken nothing in it, to observe a part of the data."""
        twin = type(self)(self.options)
        twin.passes, twin._total, twin._factors = self.passes, self._total, self._factors
        twin._stage = None if self._stage is None else self._stage.fresh()
        return twin

    def state(self) -> State:
        """Return everything this observer holds, to be stored with `numpy.savez` and given to `restore`."""
        state: State = {"algorithm": np.array(self.options.algorithm), "passes": np.array(self.passes)}
        state["count"] = np.array(self._count)
        state["total"] = np.array(-1 if self._total is None else self._total)
        state["range"] = np.array([self._low, self._high])
        if self._factors is not None:
            state["scale"], state["offset"] = np.array(self._factors.scale), np.array(self._factors.offset)
        if self._stage is not None:
            state["stage"] = np.array(type(self._stage).__name__)
            state.update({f"stage.{name}": array for name, array in self._stage.arrays().items()})
        return state

    def restore(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become the observer that `state` was asked of; the options must be the same.

        Args:
            state: what `state()` returned, or `numpy.load` of it.

        Raises:
            ArgumentError: the state is another algorithm's.
        """
        if str(state["algorithm"]) != self.options.algorithm:
            raise ArgumentError(
                f"a state of algorithm {str(state['algorithm'])!r} cannot continue as {self.options.algorithm!r}; "
                "use the options it was made with, or start again"
            )
        self.passes, self._count = int(state["passes"]), int(state["count"])
        self._low, self._high = map(float, state["range"])
        total = int(state["total"])
        self._total = None if total < 0 else total
        self._factors = self._stage = None
        if "scale" in state:
            self._factors = ActivationFactors(float(state["scale"]), int(state["offset"]), self.options.num_bits)
        if "stage" in state:
            (kind,) = (kind for kind in self.stages if kind.__name__ == str(state["stage"]))
            arrays = {name.partition(".")[2]: state[name] for name in state if name.startswith("stage.")}
            self._stage = kind.restore(arrays)

    def _add(self, stage: Stage | None, count: int, low: float, high: float) -> None:
        if self._stage is None or stage is None:
            raise ArgumentError("cannot merge observers that have their factors; merge before the pass ends")
        if type(self._stage) is not type(stage) or self._stage.terms() != stage.terms():
            raise ArgumentError(
                "cannot merge what was accumulated in another way, or where earlier passes saw different data; "
                "share one state"
            )
        self._stage.merge(stage)
        self._count += count
        self._low, self._high = min(self._low, low), max(self._high, high)


def _not_finite(block: Float32Array) -> str:
    nans, infinities = int(np.isnan(block).sum()), int(np.isinf(block).sum())
    return f"the activation holds {nans} NaN and {infinities} infinite values among {block.size}; they give no range"
