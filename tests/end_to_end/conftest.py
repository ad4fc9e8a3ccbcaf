"""Real photographs with text on them."""

from __future__ import annotations

import numpy as np
import pytest


@pytest.fixture(scope="session")
def photographs():
    """The two photographs that scikit-learn ships, as Pillow images of 640 x 427 pixels."""
    datasets = pytest.importorskip("sklearn.datasets")
    image = pytest.importorskip("PIL.Image")
    return [image.fromarray(array) for array in datasets.load_sample_images().images]


@pytest.fixture(scope="session")
def signs(photographs):
    """Make n pictures of a size: a piece of a photograph with a word printed on it; uint8 (n, height, width, 3)."""
    from PIL import ImageDraw, ImageFont

    words = ["STATION 42", "hello world", "No Parking", "EXIT", "quantize", "Tea & Rice", "17:45 Gate B", "flowers"]

    def make(n, height, width, letter_size, seed):
        random = np.random.default_rng(seed)
        font = ImageFont.load_default(size=letter_size)
        pictures = []
        for index in range(n):
            photograph = photographs[index % len(photographs)]
            left = int(random.integers(0, photograph.width - width + 1))
            top = int(random.integers(0, photograph.height - height + 1))
            picture = photograph.crop((left, top, left + width, top + height))
            word = words[int(random.integers(len(words)))]
            at = (int(random.integers(2, max(3, width // 8))), max(0, (height - letter_size) // 2 - 4))
            ImageDraw.Draw(picture).text(at, word, fill=["white", "black"][index // 2 % 2], font=font)
            pictures.append(np.asarray(picture))
        return np.stack(pictures)

    return make
