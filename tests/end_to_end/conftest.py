"""Real photographs with signs put up in them."""

from __future__ import annotations

import numpy as np
import pytest

WORDS = ["STATION 42", "hello world", "No Parking", "EXIT", "quantize", "Tea & Rice", "17:45 Gate B", "flowers"]
PLATES_AND_INKS = [("white", "black"), ("navy", "white"), ("gold", "black")]
MARGIN = 4


@pytest.fixture(scope="session")
def photographs():
    """The two photographs that scikit-learn ships, as Pillow images of 640 x 427 pixels."""
    datasets = pytest.importorskip("sklearn.datasets")
    image = pytest.importorskip("PIL.Image")
    return [image.fromarray(array) for array in datasets.load_sample_images().images]


@pytest.fixture(scope="session")
def signs(photographs):
    """Make n pictures of a size, uint8 (n, height, width, 3).

    Each is a piece of a photograph with a word on a translucent plate; cropped pictures show the plate alone, stretched
    to the size, as a text detector hands it to a recognizer.
    """
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(size=36)

    def picture(random, index, width, height, cropped):
        photograph = photographs[index % len(photographs)]
        left, top = (int(random.integers(0, room)) for room in (photograph.width - 320, photograph.height - 320))
        scene = photograph.crop((left, top, left + 320, top + 320))
        word = WORDS[int(random.integers(len(WORDS)))]
        plate, ink = PLATES_AND_INKS[int(random.integers(len(PLATES_AND_INKS)))]
        at = (int(random.integers(MARGIN, 60)), int(random.integers(40, 280)))
        left, top, right, bottom = ImageDraw.Draw(scene).textbbox(at, word, font=font, anchor="lm")
        area = (left - MARGIN, top - MARGIN, right + MARGIN, bottom + MARGIN)
        behind = scene.crop(area)
        scene.paste(Image.blend(behind, Image.new("RGB", behind.size, plate), 0.85), area)
        ImageDraw.Draw(scene).text(at, word, fill=ink, font=font, anchor="lm")
        return np.asarray((scene.crop(area) if cropped else scene).resize((width, height)))

    def make(n, width, height, *, cropped, seed):
        random = np.random.default_rng(seed)
        return np.stack([picture(random, index, width, height, cropped) for index in range(n)])

    return make
