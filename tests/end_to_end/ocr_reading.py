"""PP-OCR as an application uses it: photographs with signs, what is read from them, and how much of it is right."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np

SEEN = [
    *("Open daily 9-18", "Lake View Road", "Platform 12", "Fresh bread", "Ticket office", "Do not enter"),
    *("Museum of Art", "Exit to city", "Room 407", "Garden cafe", "Speed limit 30", "Winter sale 50%"),
    *("Northern Line", "Call 555-0137", "Bicycle path", "Keep left"),
]
UNSEEN = [
    *("STATION 42", "hello world", "No Parking", "Tea & Rice", "17:45 Gate B", "Wild flowers", "quantize me"),
    *("Main Street 8", "Push to open", "Library", "Zurich HB", "Closed Monday", "Mind the gap", "Total 12.90"),
    *("First floor", "Jazz Festival"),
]
PLATES_AND_INKS = [("white", "black"), ("navy", "white"), ("gold", "black"), ("darkgreen", "white")]
NETWORKS = {"det": "ch_PP-OCRv4_det_infer.onnx", "rec": "ch_PP-OCRv4_rec_infer.onnx"}


class Recording:
    """Stands in for a network of the application and keeps what it is fed."""

    def __init__(self, network):
        self.network = network
        self.fed = []

    def __call__(self, x):
        self.fed.append(x)
        return self.network(x)

    def __getattr__(self, name):
        return getattr(self.network, name)


def shipped(kind):
    """The path of a network in the wheel of the application."""
    return Path(importlib.util.find_spec("rapidocr_onnxruntime").origin).parent / "models" / NETWORKS[kind]


def scenes(photographs, n, texts, seed):
    """Put four signs up in each of n photographs.

    Returns ([uint8 (height, width, 3), blue first], [the four texts, one a line]).
    """
    random = np.random.default_rng(seed)
    return tuple(zip(*(_scene(photographs, texts, random) for _ in range(n)), strict=True))


def _scene(photographs, texts, random):
    from PIL import Image, ImageDraw, ImageFont

    picture = photographs[int(random.integers(len(photographs)))].copy()
    if random.random() < 0.5:
        picture = picture.crop((100, 0, 527, 427))
    chosen = [texts[index] for index in random.permutation(len(texts))[:4]]
    for row, text in enumerate(chosen):
        font = ImageFont.load_default(size=int(random.integers(22, 40)))
        plate, ink = PLATES_AND_INKS[int(random.integers(len(PLATES_AND_INKS)))]
        at = (int(random.integers(10, 100)), 50 + 100 * row + int(random.integers(-15, 16)))
        left, top, right, bottom = ImageDraw.Draw(picture).textbbox(at, text, font=font, anchor="lm")
        area = (left - 6, top - 6, right + 6, bottom + 6)
        behind = picture.crop(area)
        picture.paste(Image.blend(behind, Image.new("RGB", behind.size, plate), 0.7), area)
        ImageDraw.Draw(picture).text(at, text, fill=ink, font=font, anchor="lm")
    return np.ascontiguousarray(np.asarray(picture)[:, :, ::-1]), "\n".join(chosen)


def fed_to_networks(reader, pictures):
    """What an application feeds its networks when it reads pictures: {kind: [float32 arrays]}. Edits `reader`."""
    reader.text_det.infer = det = Recording(reader.text_det.infer)
    reader.text_rec.session = rec = Recording(reader.text_rec.session)
    read(reader, pictures)
    return {"det": det.fed, "rec": rec.fed}


def read(reader, pictures):
    """Read pictures: one string for each, its lines from the top."""
    texts = []
    for picture in pictures:
        lines, _ = reader(picture, use_cls=False)
        from_the_top = sorted(lines or [], key=lambda line: np.mean(line[0], axis=0)[1])
        texts.append("\n".join(text for _, text, _ in from_the_top))
    return texts


def agreement(expected, given):
    """The share of the expected characters that need no edit."""
    return 1 - sum(map(edits, expected, given)) / sum(map(len, expected))


def edits(one, other):
    """The fewest characters to insert, delete or replace that turn one string into the other (Levenshtein)."""
    row = list(range(len(other) + 1))
    for i, a in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, b in enumerate(other, 1):
            diagonal, row[j] = row[j], min(diagonal + (a != b), row[j] + 1, row[j - 1] + 1)
    return row[-1]
