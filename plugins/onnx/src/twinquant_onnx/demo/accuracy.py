"""Save the two twins of the digits network and compare how many held-out digits each of them recognizes."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

import twinquant
from twinquant_onnx.verify.simulator import DeploySimulator

__all__ = ["run_demo"]

SHIPPED = Path(__file__).parent
MODEL = "digits.onnx"
RECORD = "digits_record.txt"
HELD_OUT = "held_out_digits.npz"


def run_demo(folder: Path) -> Sequence[tuple[str, str]]:
    """Quantize the digits network in a folder and measure all three models on 450 digits that training never saw.

    Leaves the float model, the record and the two twins in the folder, to look at and to play with.

    Args:
        folder: where the files go; created if it does not exist, files of an earlier run are replaced.

    Returns:
        (what, result) rows for one table.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (MODEL, RECORD):
        shutil.copyfile(SHIPPED / name, folder / name)
    output = twinquant.save_model(str(folder / MODEL), str(folder / RECORD), str(folder / "digits"), framework="onnx")

    with np.load(SHIPPED / HELD_OUT) as held_out:
        images, labels = held_out["images"], held_out["labels"]
    feeds = {"image": (images.astype(np.float32) / np.float32(16))[:, np.newaxis]}
    fake_quant, deploy = output.fake_quant.model, output.deploy.model
    answers = {
        "float model": _run_on_onnx_runtime(folder / MODEL, feeds),
        "fake-quant twin": _run_on_onnx_runtime(fake_quant, feeds),
        "deploy twin": DeploySimulator(deploy).run(feeds)["scores"].argmax(axis=1),
    }
    report = twinquant.verify(fake_quant, deploy, feeds, framework="onnx")

    return [
        *((f"accuracy of the {name}", _accuracy(digits, labels)) for name, digits in answers.items()),
        ("digits the twins disagree on", str(int((answers["fake-quant twin"] != answers["deploy twin"]).sum()))),
        ("twinquant verify", f"the twins {'agree' if report.agree else 'DISAGREE'} in {len(report.layers)} layers"),
        ("fake-quant twin, run on ONNX Runtime", str(fake_quant)),
        ("deploy twin, simulated", str(deploy)),
    ]


def _run_on_onnx_runtime(model: Path, feeds: dict[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.int64]:
    import onnxruntime  # a fifth of a second that only the demo needs

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    digits: npt.NDArray[np.int64] = session.run(["scores"], feeds)[0].argmax(axis=1)
    return digits


def _accuracy(digits: npt.NDArray[np.int64], labels: npt.NDArray[np.uint8]) -> str:
    return f"{np.mean(digits == labels):.2%} of {len(labels)} held-out digits"
