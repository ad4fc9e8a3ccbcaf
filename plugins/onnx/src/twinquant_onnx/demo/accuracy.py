"""Quantize the digits network by every algorithm, and count how many held-out digits each model reads."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import twinquant
from twinquant_onnx.verify.simulator import DeploySimulator

__all__ = ["run_demo"]

SHIPPED = Path(__file__).parent
MODEL = "digits.onnx"
CALIBRATION = "calibration_digits.npz"
HELD_OUT = "held_out_digits.npz"

CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    **{
        algorithm: {"activation_algorithm": algorithm}
        for algorithm in ("minmax", "ifmr", "hfmg", "percentile", "entropy", "mse")
    },
    "ifmr, symmetric": {"activation_algorithm": "ifmr", "asymmetric": False},
    "ifmr, balanced": {"activation_algorithm": "ifmr", "dmq_migration_strength": 0.5},
}

Feeds = dict[str, npt.NDArray[np.float32]]


def run_demo(folder: Path) -> Sequence[Sequence[str]]:
    """Quantize the digits network by every algorithm and measure all models on 450 digits that no step has seen.

    Leaves the float model, the calibration digits and, in a folder for each algorithm, the twins with their record and
    manifest, to look at and to play with.

    Args:
        folder: where the files go; created if it does not exist, files of an earlier run are replaced.

    Returns:
        The rows of one table, its header first: for every algorithm the share of the held-out digits that the float
        model, the fake-quant twin on ONNX Runtime and the deploy twin on simulated integer operators read correctly.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MODEL, CALIBRATION):
        shutil.copyfile(SHIPPED / name, folder / name)
    with np.load(SHIPPED / HELD_OUT) as held_out:
        images, labels = held_out["images"], held_out["labels"]
    feeds = {"image": (images.astype(np.float32) / np.float32(16))[:, np.newaxis]}

    correct = _on_onnx_runtime(folder / MODEL, feeds) == labels
    rows = [("algorithm", "float", "fake-quant", "simulated deploy", "twins agree")]
    for title, config in CONFIGURATIONS.items():
        rows.append((title, _percent(correct), *_quantized(folder, title, config, feeds, labels)))
    return rows


def _quantized(
    folder: Path, title: str, config: Mapping[str, Any], feeds: Feeds, labels: npt.NDArray[np.uint8]
) -> tuple[str, str, str]:
    """Quantize with one configuration; return the accuracy of both twins, and whether `verify` finds them equal."""
    save_path = folder / title.replace(", ", "_") / "digits"
    output = twinquant.quantize(
        folder / MODEL, folder / CALIBRATION, save_path, config=config, framework="onnx", resume=False
    ).output
    fake_quant, deploy = output.fake_quant.model, output.deploy.model
    report = twinquant.verify(fake_quant, deploy, feeds, framework="onnx")
    return (
        _percent(_on_onnx_runtime(fake_quant, feeds) == labels),
        _percent(_best(DeploySimulator(deploy).run(feeds)["scores"]) == labels),
        "yes" if report.agree else "NO",
    )


def _on_onnx_runtime(model: Path, feeds: Feeds) -> npt.NDArray[np.int64]:
    import onnxruntime  # a fifth of a second that only the demo needs

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return _best(session.run(["scores"], feeds)[0])


def _best(scores: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    digits: npt.NDArray[np.int64] = scores.argmax(axis=1)
    return digits


def _percent(correct: npt.NDArray[np.bool_]) -> str:
    return f"{np.mean(correct):.2%}"
