"""HOW FACTORS ARE FOUND: one observer per file, all streaming and mergeable, and the factors of weights."""

from twinquant.calibration.balance import ChannelMaxObserver, balance_factors
from twinquant.calibration.factory import make_observer, restore_observer
from twinquant.calibration.observer import ActivationFactors, Observer
from twinquant.calibration.options import ObserverOptions
from twinquant.calibration.weights import channel_maxima, weight_scales

__all__ = [
    "ActivationFactors",
    "ChannelMaxObserver",
    "Observer",
    "ObserverOptions",
    "balance_factors",
    "channel_maxima",
    "make_observer",
    "restore_observer",
    "weight_scales",
]
