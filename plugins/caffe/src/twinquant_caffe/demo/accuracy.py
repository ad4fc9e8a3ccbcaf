"""Running the digits network: float net and fake-quant twins in OpenCV, deploy twins on exact integers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from twinquant.digits import compare_algorithms
from twinquant_caffe.deploy_runner import DeployRunner
from twinquant_caffe.load import load_net
from twinquant_caffe.run import open_net

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

    Raises:
        CapabilityError: OpenCV is missing.
    """
    return compare_algorithms(
        "caffe",
        [SHIPPED / "digits.prototxt", SHIPPED / "digits.caffemodel"],
        folder,
        run=_in_opencv,
        run_deploy=_on_integers,
        without=("ifmr, balanced",),  # records of Caffe nets hold no balance factors
    )


def _in_opencv(prototxt: Path, feeds: Feeds) -> npt.NDArray[np.float32]:
    net = load_net(prototxt, float_only=False)
    (output,) = net.outputs
    return open_net(net, [output])(feeds)[output]


def _on_integers(prototxt: Path, feeds: Feeds) -> npt.NDArray[np.float32]:
    with DeployRunner(prototxt) as runner:
        return runner.run(feeds)[OUTPUT]
