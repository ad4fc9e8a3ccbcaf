"""The calibration that runs when a modified net has seen its batches."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from twinquant.calibration.assemble import complete_records
from twinquant.calibration.check_ranges import check_ranges
from twinquant.calibration.passes import Measurement, measure
from twinquant.calibration.resume import Checkpoint
from twinquant.records import read_begun_records, write_record_file
from twinquant.registry import RunBatch, Tap
from twinquant_caffe.framework import CaffeFramework
from twinquant_caffe.modified.job import CalibrationJob
from twinquant_caffe.modified.replay import load_replay, open_taps
from twinquant_caffe.net import CaffeNet

__all__ = ["fill_record"]

_logger = logging.getLogger(__name__)


class _RunningFramework(CaffeFramework):
    """Caffe as it runs in this process: nets open in the runtime that runs the modified net."""

    def activations(self, graph: CaffeNet, taps: Sequence[Tap], *, threads: int | None = None) -> RunBatch:
        """Open the net in Caffe where it is running, else in OpenCV."""
        return open_taps(graph, taps, threads)


def fill_record(job: CalibrationJob) -> None:
    """Find the factors of the activations from the stored batches, and complete the record.

    Raises:
        TwinQuantError: the batches give no factors, the modified net cannot be run again, or the record cannot be
            written.
    """
    record = Path(job.record)
    measurement = Measurement(
        framework=_RunningFramework(),
        graph=load_replay(job),
        model=None,
        fuse=False,
        skip_fusion=(),
        watches=job.watches,
        source=job.spool,
        batch_num=job.batch_num,
        weight_maxima=_no_maxima,
    )
    stations, _ = measure(measurement, Checkpoint(None, ""), None, lambda words, _: _logger.info(words))
    check_ranges(
        stations,
        job.batch_num,
        way_out="leave their layers out (skip_layers of create_quant_config)",
    )
    write_record_file(complete_records(read_begun_records(record), stations), record)


def _no_maxima(layer: str) -> npt.NDArray[np.float32]:
    raise ValueError(f"layer {layer!r} is balanced, which no Caffe layer is")
