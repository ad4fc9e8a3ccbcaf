"""How far a calibration is, in words."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Progress", "Teller"]

Progress = Callable[[str, float], None]
"""Takes what happens next and the fraction of the whole that is done, 0 to 1."""


class Teller:
    """Tells about batches: how many layers, which pass, which batch, and how long it may still take."""

    def __init__(self, tell: Progress, layers: int, batches: int, most_passes: int) -> None:
        """Start the clock.

        Args:
            tell: takes the words.
            layers: how many layers are calibrated.
            batches: in one pass.
            most_passes: how many passes there may be.
        """
        self._tell = tell
        self._layers, self._batches, self._most_passes = layers, batches, most_passes
        self._start = time.monotonic()
        self._seen = 0

    def batches_done(self, number_of_pass: int, done: int, new: int = 1) -> None:
        """Tell that batches of a pass are done.

        Args:
            number_of_pass: which pass, from 1.
            done: how many of its batches are done.
            new: how many of them since the last time.
        """
        self._seen += new
        whole = self._batches * self._most_passes
        past = self._batches * (number_of_pass - 1) + done
        seconds = (time.monotonic() - self._start) / max(1, self._seen) * (whole - past)
        left = f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
        layers = f"{self._layers} layer{'s' if self._layers != 1 else ''}"
        words = f"calibrating {layers}: pass {number_of_pass}, batch {done} of {self._batches}, at most {left} left"
        self._tell(words, min(1.0, past / whole))
