"""By how much records differ that are measured on the float model and on the one with rounded weights.

Run:  python benchmarks/two_records.py      (two minutes; needs rapidocr-onnxruntime, scikit-learn and Pillow)

`twinquant.calibrate` measures the activations of the float model, the vendor's way (`twinquant_onnx.amct`) those of a
model whose weights are rounded already. Printed for each network and algorithm: the relative difference of `scale_d`,
the median over the layers and the largest. The scales of the weights are the same, bit for bit.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnxruntime

import twinquant
import twinquant.digits
import twinquant_onnx.demo
from twinquant.records import parse_record_file
from twinquant_onnx import amct

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "end_to_end"))
from models.resnet import write_images, write_resnet

Batches = Sequence[npt.NDArray[np.float32]]

ALGORITHMS = ("minmax", "ifmr", "hfmg")
BATCHES = 8


def networks(folder: Path) -> Iterator[tuple[str, Path, Batches]]:
    digits = np.load(Path(twinquant.digits.__file__).parent / "calibration_digits.npz")
    (images,) = (digits[name] for name in digits.files[:1])
    images = images.astype(np.float32).reshape(-1, 1, 8, 8) / np.float32(images.max())
    yield "digits", Path(twinquant_onnx.demo.__file__).parent / "digits.onnx", np.array_split(images, BATCHES)
    write_resnet("resnet18", folder / "resnet18.onnx")
    write_images(BATCHES, folder / "images.npy")
    yield "resnet18", folder / "resnet18.onnx", np.array_split(np.load(folder / "images.npy"), BATCHES)

    from ocr_reading import SEEN, fed_to_networks, scenes, shipped
    from PIL import Image
    from rapidocr_onnxruntime import RapidOCR
    from sklearn.datasets import load_sample_images

    photographs = [Image.fromarray(array) for array in load_sample_images().images]
    fed = fed_to_networks(RapidOCR(), scenes(photographs, BATCHES, SEEN, seed=1)[0])
    for kind in ("det", "rec"):
        yield f"PP-OCRv4 {kind}", shipped(kind), fed[kind][:BATCHES]


def differences(model: Path, batches: Batches, algorithm: str, folder: Path) -> npt.NDArray[np.float64]:
    """Return the relative difference of every layer's scale_d."""
    config = folder / "config.json"
    amct.create_quant_config(config, model, batch_num=len(batches))
    switch_algorithm(config, algorithm)
    amct.quantize_model(config, model, folder / "modified.onnx", folder / "record.txt")
    session = onnxruntime.InferenceSession(str(folder / "modified.onnx"), amct.AMCT_SO)
    for batch in batches:
        session.run(None, {session.get_inputs()[0].name: batch})
    rounded = parse_record_file(folder / "record.txt").records
    of_floats = twinquant.calibrate(
        model,
        iter(batches),
        folder / "direct.txt",
        config=config,
        prepared_model=folder / "prepared.onnx",
    ).records
    assert all(np.array_equal(rounded[name].scale_w, of_floats[name].scale_w) for name in rounded)
    return np.array([abs(rounded[name].scale_d / of_floats[name].scale_d - 1) for name in rounded])


def switch_algorithm(config: Path, algorithm: str) -> None:
    """Make every layer of a configuration file use an algorithm, with its defaults."""
    content = json.loads(config.read_text())
    for layer in content.values():
        if isinstance(layer, dict):
            bits = {"num_bits": 8, "act_algo": algorithm, "asymmetric": True}
            layer["activation_quant_params"] = bits | ({"num_of_bins": 4096} if algorithm == "hfmg" else {})
    config.write_text(json.dumps(content))


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        print(f"{'network':14}  layers" + "".join(f"{name:>18}" for name in ALGORITHMS))
        for name, model, batches in networks(folder):
            found = [differences(model, batches, algorithm, folder) for algorithm in ALGORITHMS]
            cells = "".join(f"{np.median(each):>9.1%}, {each.max():>7.1%}" for each in found)
            print(f"{name:14}  {len(found[0]):6}{cells}", flush=True)


if __name__ == "__main__":
    main()
