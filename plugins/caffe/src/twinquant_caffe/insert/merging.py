"""Which layers runtimes merge with a Power behind them, computing both in one step."""

from __future__ import annotations

from collections.abc import Sequence

from twinquant_caffe.geometry import CONVOLUTIONS, DECONVOLUTION
from twinquant_caffe.net import Layer

__all__ = ["merges_with_power"]

_MERGED = frozenset({"Power", "Scale", "BatchNorm", "Bias", "InnerProduct", *CONVOLUTIONS, DECONVOLUTION})
"""Types that multiply and add: a Power behind them is two more factors."""

_DROPPED = frozenset({"Dropout", "Split"})
"""Types that compute nothing in the TEST phase: runtimes look through them."""


def merges_with_power(layers: Sequence[Layer], blob: str) -> bool:
    """Tell whether a runtime may merge a Power that reads a blob with the layer that computes it.

    OpenCV 4.14 does with its default settings: behind a Power or a Convolution that costs 10 to 30 % of the roundings.

    Args:
        layers: what stands before the Power, in order.
        blob: the blob, as the last of these leave it.
    """
    for layer in reversed(layers):
        if blob in layer.tops:
            if layer.type not in _DROPPED or not layer.bottoms:
                return layer.type in _MERGED
            blob = layer.bottoms[0]
    return False
