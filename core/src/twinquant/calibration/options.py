"""What an observer is asked to do."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Literal

from twinquant.config.parameters import ACTIVATION_DEFAULTS, BIN_COUNTS, MOST_CANDIDATES, candidate_count
from twinquant.config.quant_config import ActivationConfig
from twinquant.errors import ArgumentError

__all__ = ["Algorithm", "ObserverOptions"]

Algorithm = Literal["ifmr", "hfmg", "minmax", "percentile", "entropy", "mse"]

_BITS = (4, 8, 16)
_DEFAULTS = ActivationConfig()


@dataclass(frozen=True, slots=True)
class ObserverOptions:
    """How the factors of one activation are found. The defaults are those of a configuration.

    Attributes:
        algorithm: which observer.
        num_bits: 4, 8 or 16.
        asymmetric: False keeps the offset at 0.
        max_percentile: ifmr: the share of all values that lies at or below the upper limit, in (0.5, 1].
        min_percentile: ifmr: the share of all values that lies at or above the lower limit, in (0.5, 1].
        search_range: ifmr: the first and the last factor that the upper limit is multiplied by.
        search_step: ifmr: the distance between two such factors, 1/10,000 to 1 of the length of the range.
        num_of_bins: hfmg: bins of its histogram, one of 1024, 2048, 4096, 8192.
        percentile: percentile: the share of all values (symmetric: of their magnitudes) inside the range, in (0.5, 1].

    Raises:
        ArgumentError: a value is outside what is said here.
    """

    algorithm: Algorithm = "ifmr"
    num_bits: int = _DEFAULTS.num_bits
    asymmetric: bool = _DEFAULTS.asymmetric
    max_percentile: float = _DEFAULTS.max_percentile
    min_percentile: float = _DEFAULTS.min_percentile
    search_range: tuple[float, float] = _DEFAULTS.search_range
    search_step: float = _DEFAULTS.search_step
    num_of_bins: int = _DEFAULTS.num_of_bins
    percentile: float = ACTIVATION_DEFAULTS["percentile"]["max_percentile"]

    def __post_init__(self) -> None:
        """Refuse values that no observer can work with."""
        if self.num_bits not in _BITS:
            raise ArgumentError(f"num_bits: got {self.num_bits!r}, expected one of {_BITS}")
        for name in ("max_percentile", "min_percentile", "percentile"):
            if not 0.5 < getattr(self, name) <= 1.0:
                raise ArgumentError(f"{name}: got {getattr(self, name)!r}, expected a share above 0.5 and at most 1")
        first, last = self.search_range
        if not 0.0 < first < last < inf:
            raise ArgumentError(f"search_range: got {self.search_range!r}, expected two rising positive factors")
        if not self.search_step > 0 or not 0 < candidate_count(self.search_range, self.search_step) <= MOST_CANDIDATES:
            raise ArgumentError(
                f"search_step: got {self.search_step!r}, expected a positive step of at most {last - first:g}, the "
                f"length of search_range {self.search_range!r}, and not below 1/{MOST_CANDIDATES} of it"
            )
        if self.num_of_bins not in BIN_COUNTS:
            raise ArgumentError(f"num_of_bins: got {self.num_of_bins!r}, expected one of {BIN_COUNTS}")
