"""How much of what an OCR application reads stays the same when its networks are quantized.

Run:  python benchmarks/ocr.py          (six minutes; needs rapidocr-onnxruntime, scikit-learn and Pillow)

Quantizes the detection and the recognition network of PP-OCR with several configurations, from what the application
feeds them for 8 photographs with signs, and lets the application read 16 other photographs with the fake-quant twins.
Printed for each: the cosine between the outputs of float and fake-quant networks, and the share of the characters that
the application with float networks reads, and that were written, which are read with the quantized ones.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from rapidocr_onnxruntime import RapidOCR

import twinquant

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "end_to_end"))
from ocr_reading import SEEN, UNSEEN, agreement, fed_to_networks, read, scenes, shipped

Arrays = Sequence[npt.NDArray[np.float32]]

BEHIND_THE_STEM = ("p2o.Conv.1", "p2o.Conv.2", "p2o.Conv.3")
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    **{name: {"activation_algorithm": name} for name in ("ifmr", "mse", "percentile", "minmax", "hfmg", "entropy")},
    "ifmr, symmetric": {"asymmetric": False},
    "ifmr, balanced (DMQ 0.5)": {"dmq_migration_strength": 0.5},
    "ifmr, 16 bits in three layers": {"layers": {name: {"activation_bits": 16} for name in BEHIND_THE_STEM}},
    "ifmr, three layers in float": {"skip_layers": list(BEHIND_THE_STEM)},
}


def outputs(model: Path, fed: Arrays) -> npt.NDArray[np.float64]:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"x": x})[0].ravel() for x in fed]).astype(np.float64)


def cosine(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def main() -> None:
    from PIL import Image
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(array) for array in load_sample_images().images]
    calibration = fed_to_networks(RapidOCR(), scenes(photographs, 8, SEEN, seed=1)[0])
    pictures, written = scenes(photographs, 16, UNSEEN, seed=2)
    evaluation = fed_to_networks(RapidOCR(), pictures)
    by_float = read(RapidOCR(), pictures)
    expected = {kind: outputs(shipped(kind), fed) for kind, fed in evaluation.items()}
    print(f"{'configuration':30}  cosine det  cosine rec  as float  as written")
    print(f"{'float':30}  {1:10.3f}  {1:10.3f}  {1:8.1%}  {agreement(written, by_float):10.1%}", flush=True)
    for title, config in CONFIGURATIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            twins = {
                kind: twinquant.quantize(
                    shipped(kind), fed, Path(folder) / kind, batch_num=len(fed), config=config
                ).output.fake_quant.model
                for kind, fed in calibration.items()
            }
            det, rec = (cosine(expected[kind], outputs(twins[kind], evaluation[kind])) for kind in ("det", "rec"))
            given = read(RapidOCR(**{f"{kind}_model_path": str(model) for kind, model in twins.items()}), pictures)
        same, right = agreement(by_float, given), agreement(written, given)
        print(f"{title:30}  {det:10.3f}  {rec:10.3f}  {same:8.1%}  {right:10.1%}", flush=True)


if __name__ == "__main__":
    main()
