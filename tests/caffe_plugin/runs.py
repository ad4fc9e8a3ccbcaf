"""Running written nets in OpenCV as it is, every layer on its own: the reference of several tests."""

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np


def forward(pair: tuple[Path, Path], feeds: Mapping[str, np.ndarray], layer: str | None = None) -> np.ndarray:
    """Run a net, and return what a layer writes; None: the last one."""
    net = cv2.dnn.readNetFromCaffe(*map(str, pair))
    net.enableFusion(False)
    net.enableWinograd(False)
    for name, values in feeds.items():
        net.setInput(values, name)
    return np.array(net.forward() if layer is None else net.forward(layer))


def assert_equal_to(wanted: np.ndarray, found: np.ndarray, tolerance: float = 1e-5) -> None:
    """Compare two arrays; the tolerance is relative to the largest value."""
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= tolerance * np.abs(wanted).max()
