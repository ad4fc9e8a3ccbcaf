"""Quantize a digits network by every algorithm, and count how many held-out digits each model reads."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.api import verify
from twinquant.calibration_api import quantize

__all__ = ["compare_algorithms"]

SHIPPED = Path(__file__).parent
CALIBRATION = "calibration_digits.npz"
HELD_OUT = "held_out_digits.npz"
INPUT = "image"

CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    **{
        algorithm: {"activation_algorithm": algorithm}
        for algorithm in ("minmax", "ifmr", "hfmg", "percentile", "entropy", "mse")
    },
    "ifmr, symmetric": {"activation_algorithm": "ifmr", "asymmetric": False},
    "ifmr, balanced": {"activation_algorithm": "ifmr", "dmq_migration_strength": 0.5},
}

Scores = Callable[[Path, Mapping[str, npt.NDArray[np.float32]]], npt.NDArray[np.float32]]
"""Runs a model file: float32 `(N, 1, 8, 8)` by the name "image" in, float32 `(N, 10)` out."""


def compare_algorithms(
    framework: str,
    model: Sequence[Path],
    folder: Path,
    *,
    run: Scores,
    run_deploy: Scores,
    without: Collection[str] = (),
) -> Sequence[Sequence[str]]:
    """Quantize a digits network by every algorithm and measure all models on 450 digits that no step has seen.

    Leaves the float model, the calibration digits and, in a folder for each algorithm, the twins with their record and
    manifest, to look at and to play with.

    Args:
        framework: the name of the network's framework.
        model: the files of the network, the model file first; its input is "image", ink from 0 to 1.
        folder: where the files go; created if it does not exist, files of an earlier run are replaced.
        run: runs the float model and fake-quant twins.
        run_deploy: runs deploy twins on simulated integer operators.
        without: rows that the framework does not have.

    Returns:
        The rows of one table, its header first: for every algorithm the share of the held-out digits that the float
        model, the fake-quant twin and the deploy twin read correctly.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in (*model, SHIPPED / CALIBRATION):
        shutil.copyfile(path, folder / path.name)
    with np.load(SHIPPED / HELD_OUT) as held_out:
        images, labels = held_out["images"], held_out["labels"]
    feeds = {INPUT: (images.astype(np.float32) / np.float32(16))[:, np.newaxis]}

    def share(run: Scores, path: Path) -> str:
        return f"{np.mean(run(path, feeds).argmax(axis=1) == labels):.2%}"

    network = folder / model[0].name
    in_float = share(run, network)
    rows = [("algorithm", "float", "fake-quant", "simulated deploy", "twins agree")]
    for title, config in CONFIGURATIONS.items():
        if title in without:
            continue
        save_path = folder / title.replace(", ", "_") / model[0].stem
        output = quantize(
            network, folder / CALIBRATION, save_path, config=config, framework=framework, resume=False
        ).output
        fake_quant, deploy = output.fake_quant.model, output.deploy.model
        agree = verify(fake_quant, deploy, feeds, framework=framework).agree
        rows.append((title, in_float, share(run, fake_quant), share(run_deploy, deploy), "yes" if agree else "NO"))
    return rows
