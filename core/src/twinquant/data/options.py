"""How calibration data is cut and prepared."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from numbers import Integral, Real

from twinquant.errors import ArgumentError

__all__ = ["DataOptions"]

_LAYOUTS = ("NCHW", "NHWC")
_CHANNEL_ORDERS = ("RGB", "BGR")


@dataclass(frozen=True, slots=True)
class DataOptions:
    """How data is cut into batches, and how a picture becomes an input: `(pixel - mean) / std` for every channel.

    Attributes:
        batch_size: samples in a batch, where neither the model nor the data fixes it; None: 1 for files, and for arrays
            as many as give the wanted number of batches.
        mean: one value, alone or in a tuple, or one per channel in the order of the model's channels, in the pixels'
            range 0 to 255.
        std: the same, > 0.
        layout: "NCHW" or "NHWC"; None: as the shape of the model's input suggests.
        size: (height, width) that pictures are resized to; None: what the model fixes, else each picture's own.
        channel_order: "RGB" or "BGR": which of its three channels the model takes first; most Caffe nets take blue.
        skip_broken: leave out pictures that cannot be decoded, instead of stopping.

    Raises:
        ArgumentError: a value is outside what is said here.
    """

    batch_size: int | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    layout: str | None = None
    size: tuple[int, int] | None = None
    channel_order: str = "RGB"
    skip_broken: bool = False

    def __post_init__(self) -> None:
        """Refuse values that make no batch."""
        if self.batch_size is not None and (not _is_whole(self.batch_size) or self.batch_size < 1):
            raise ArgumentError(f"batch_size: must be a whole number above 0, got {self.batch_size!r}")
        for name in ("mean", "std"):
            given = getattr(self, name)
            values = given if isinstance(given, (tuple, list)) else (given,)
            if not values or not all(_is_number(value) for value in values):
                raise ArgumentError(f"{name}: must be a finite number, or one per channel, got {given!r}")
            object.__setattr__(self, name, tuple(float(value) for value in values))
        if any(value <= 0 for value in self.std):
            raise ArgumentError(f"std: must be numbers above 0, got {self.std}")
        if self.layout not in (None, *_LAYOUTS):
            raise ArgumentError(f"layout: must be one of {', '.join(_LAYOUTS)}, got {self.layout!r}")
        if self.channel_order not in _CHANNEL_ORDERS:
            orders = ", ".join(_CHANNEL_ORDERS)
            raise ArgumentError(f"channel_order: must be one of {orders}, got {self.channel_order!r}")
        if self.size is not None:
            whole = isinstance(self.size, (tuple, list)) and all(map(_is_whole, self.size))
            if not whole or len(self.size) != 2 or min(self.size) < 1:
                raise ArgumentError(f"size: must be (height, width), whole numbers above 0, got {self.size!r}")

    def for_images(self) -> list[str]:
        """Return the names of the options that only images have and that are not at their defaults."""
        neutral = {"mean": {0.0}, "std": {1.0}}
        others = ("layout", "size", "channel_order", "skip_broken")
        return [name for name, value in neutral.items() if set(getattr(self, name)) != value] + [
            name for name in others if getattr(self, name) != getattr(_DEFAULTS, name)
        ]


def _is_whole(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Integral)


def _is_number(value: object) -> bool:
    return not isinstance(value, bool) and isinstance(value, Real) and isfinite(value)


_DEFAULTS = DataOptions()
