"""The 1,797 handwritten digits that ship with scikit-learn, split once and for all."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

__all__ = ["CAFFE_NETWORK", "CALIBRATION", "DIGITS", "HELD_OUT", "ONNX_NETWORK", "SEED", "Digits", "as_input", "split"]

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "core" / "src" / "twinquant" / "digits"
"""Where the digits of the demo are stored: they ship in the twinquant-core wheel."""

ONNX_NETWORK = ROOT / "plugins" / "onnx" / "src" / "twinquant_onnx" / "demo"
"""Where the ONNX network and its record are stored: they ship in the twinquant-onnx wheel."""

CAFFE_NETWORK = ROOT / "plugins" / "caffe" / "src" / "twinquant_caffe" / "demo"
"""Where the Caffe network is stored: it ships in the twinquant-caffe wheel."""

SEED = 2024
HELD_OUT = 450
CALIBRATION = 320


@dataclass(frozen=True, slots=True)
class Digits:
    """Labelled images.

    Attributes:
        images: uint8 `(N, 8, 8)`: ink per pixel, 0 to 16.
        labels: uint8 `(N,)`: the digit, 0 to 9.
    """

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.uint8]


def split() -> tuple[Digits, Digits]:
    """Return the training digits and the held-out digits: seeded, each digit equally frequent in both."""
    digits = load_digits()
    images = digits.images.astype(np.uint8)
    labels = digits.target.astype(np.uint8)
    train, held_out = train_test_split(
        np.arange(len(labels)), test_size=HELD_OUT, random_state=SEED, shuffle=True, stratify=labels
    )
    return Digits(images[train], labels[train]), Digits(images[held_out], labels[held_out])


def as_input(images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Turn images into the network's input: float32 `(N, 1, 8, 8)`, ink per pixel from 0 to 1."""
    return (images.astype(np.float32) / np.float32(16))[:, np.newaxis]
