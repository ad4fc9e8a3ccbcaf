"""The three networks of PP-OCR, quantized with factors measured on real images: run, compared with float, verified."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from minmax_factors import measure

import twinquant
from twinquant.records import write_record_file
from twinquant.registry import select_framework

pytestmark = pytest.mark.heavy


@dataclass(frozen=True)
class Network:
    """How to feed one network, and what is known of it.

    `wide` names the layers right behind its stem: outliers of the hard-swish make 8 bits too coarse for their inputs.
    """

    file: str
    height: int
    width: int
    cropped: bool
    mean: tuple[float, ...]
    std: tuple[float, ...]
    layers: int
    wide: tuple[str, ...] = ()


CENTERED = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
STEM = ("p2o.Conv.1", "p2o.Conv.2", "p2o.Conv.3")
# `layers` counts the Conv, ConvTranspose, AveragePool and MatMul nodes of the files; of the recognizer's 13 matrix
# products, the two in each of its two attention blocks multiply activations and are left out.
NETWORKS = [
    Network("ch_PP-OCRv4_det_infer.onnx", 320, 320, False, *IMAGENET, layers=64, wide=STEM),
    Network("ch_PP-OCRv4_rec_infer.onnx", 48, 320, True, *CENTERED, layers=48, wide=STEM),
    Network("ch_ppocr_mobile_v2.0_cls_infer.onnx", 48, 192, True, *CENTERED, layers=54),
]


def shipped(file):
    """The path of a network, without importing the package around it."""
    package = importlib.util.find_spec("rapidocr_onnxruntime")
    if package is None:
        pytest.skip("the rapidocr-onnxruntime wheel with the networks is not installed (it needs Python < 3.13)")
    path = Path(package.origin).parent / "models" / file
    if not path.exists():
        pytest.skip(f"this version of the rapidocr-onnxruntime wheel does not ship {file}")
    return path


def run(model, feeds):
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)[0]


def cosine(a, b):
    a, b = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.file)
def test_the_twins_of_an_ocr_network_agree_with_each_other_and_with_float(network, signs, tmp_path):
    model = shipped(network.file)

    def feeds(n, seed):
        pictures = signs(n, network.width, network.height, cropped=network.cropped, seed=seed).astype(np.float32) / 255
        centered = (pictures - np.float32(network.mean)) / np.float32(network.std)
        return {"x": np.ascontiguousarray(centered.transpose(0, 3, 1, 2), dtype=np.float32)}

    framework = select_framework(model)
    every = framework.layers(framework.load(model))
    layers = [layer for layer in every if layer.kind is not None and layer.refusal is None]
    assert len(layers) == network.layers

    records = measure(model, layers, [feeds(4, seed) for seed in range(4)], network.wide)
    write_record_file(records, tmp_path / "record.txt")
    output = twinquant.save_model(model, tmp_path / "record.txt", tmp_path / "twins" / "net")
    assert [layer.name for layer in output.plan] == [layer.name for layer in layers]

    unseen = feeds(4, seed=99)
    assert cosine(run(model, unseen), run(output.fake_quant.model, unseen)) > 0.98

    report = twinquant.verify(output.fake_quant.model, output.deploy.model, unseen)
    assert report.agree, [problem for layer in report.layers for problem in layer.problems]
    assert len(report.layers) == network.layers
