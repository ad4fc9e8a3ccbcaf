"""Running the net of a calibration again on the batches that it has stored."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from twinquant.calibration.digests import digest_file
from twinquant.errors import ModelFileError
from twinquant.registry import RunBatch, Tap
from twinquant_caffe.calibrate import tap_net
from twinquant_caffe.load import load_net
from twinquant_caffe.modified.inputs import is_calibration_layer, replay_net
from twinquant_caffe.modified.job import CalibrationJob
from twinquant_caffe.modified.pycaffe import loaded_caffe, tap_in_caffe
from twinquant_caffe.net import CaffeNet

__all__ = ["check_present", "load_replay", "open_taps"]


def check_present(job: CalibrationJob) -> None:
    """Refuse to go on when the files of the modified net are not where they were written.

    Raises:
        ModelFileError: one is missing.
    """
    for path in (job.model, job.weights):
        if not Path(path).is_file():
            raise ModelFileError(
                f"the modified net was moved: {path!r}, where it was written, is gone; move it back, or write it anew "
                "with quantize_model"
            )


def load_replay(job: CalibrationJob) -> CaffeNet:
    """Load what the watched layers of the modified net depend on, with the shapes of the first stored batch.

    Raises:
        ModelFileError: the files are missing, or others than `quantize_model` wrote.
    """
    check_present(job)
    net = load_net((job.model, job.weights), float_only=False)
    text = "".join(
        layer.message.message("python_param").text("param_str") for layer in net.layers if is_calibration_layer(layer)
    )
    if job.key not in text or digest_file(Path(job.weights)) != job.weights_sha256:
        raise ModelFileError(
            f"the modified net {job.model!r} or its caffemodel was changed while it ran; write it anew with "
            "quantize_model"
        )
    first = job.spool.batch(0) or {}
    readers = [watch.tap.layer for watch in job.watches]
    return replay_net(net, readers, {name: array.shape for name, array in first.items()})


def open_taps(net: CaffeNet, taps: Sequence[Tap], threads: int | None = None) -> RunBatch:
    """Open such a net in Caffe where it is running, so that it is the user's runtime that is looked at; else in OpenCV.

    Raises:
        CapabilityError: both are missing.
        UnsupportedModelError: OpenCV cannot run the net.
    """
    caffe = loaded_caffe(net)
    return tap_net(net, taps, threads) if caffe is None else tap_in_caffe(caffe, net, net.files[1], taps)
