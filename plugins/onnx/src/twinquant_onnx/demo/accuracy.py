"""Running the digits network: float model and fake-quant twins on ONNX Runtime, deploy twins in the simulator."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from twinquant.digits import compare_algorithms
from twinquant_onnx.verify.simulator import DeploySimulator

__all__ = ["run_demo"]

SHIPPED = Path(__file__).parent
OUTPUT = "scores"

Feeds = Mapping[str, npt.NDArray[np.float32]]


def run_demo(folder: Path) -> Sequence[Sequence[str]]:
    """Quantize the digits network by every algorithm and measure all models; see `compare_algorithms`.

    Args:
        folder: where the files go; created if it does not exist, files of an earlier run are replaced.

    Returns:
        The rows of one table, its header first.
    """
    return compare_algorithms(
        "onnx", [SHIPPED / "digits.onnx"], folder, run=_on_onnx_runtime, run_deploy=_in_the_simulator
    )


def _on_onnx_runtime(model: Path, feeds: Feeds) -> npt.NDArray[np.float32]:
    import onnxruntime  # a fifth of a second that only the demo needs

    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    scores: npt.NDArray[np.float32] = session.run([OUTPUT], dict(feeds))[0]
    return scores


def _in_the_simulator(model: Path, feeds: Feeds) -> npt.NDArray[np.float32]:
    return DeploySimulator(model).run(dict(feeds))[OUTPUT]
