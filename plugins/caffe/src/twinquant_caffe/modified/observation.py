"""What happens with the values that pass a calibration layer, and how far a calibration is."""

from __future__ import annotations

import json
import logging
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy.typing as npt

from twinquant.calibration.assemble import complete_records
from twinquant.errors import CalibrationError, TwinQuantError
from twinquant.records import read_begun_records, write_record_file
from twinquant_caffe.modified.job import CalibrationJob, record_of
from twinquant_caffe.modified.spool import TapSpool

__all__ = ["TapObserver", "batches_seen", "failure"]

_logger = logging.getLogger(__name__)

_FAILURE = "failure.txt"


class TapObserver:
    """One calibration layer at work. What has to last is on the disk.

    Args:
        settings: the layer's param_str: JSON with the job's `folder` and the number of its `watch`.
    """

    def __init__(self, settings: str) -> None:
        fields = json.loads(settings)
        self._folder, self._index = Path(fields["folder"]), int(fields["watch"])
        self._aligned = False
        self._warned = False

    def observe(self, values: npt.NDArray[Any]) -> None:
        """Take the values of one batch; what comes when the calibration is over just passes.

        Args:
            values: float32, any shape.

        Raises:
            TwinQuantError: the values give no factors, or the record cannot be written; all later batches fail alike.
            OSError: the values cannot be stored.
        """
        job = CalibrationJob.read(self._folder)
        if job is None:
            self._warn_if_lost()
            return
        if reason := failure(job):
            raise CalibrationError(reason)
        spool = TapSpool(job, self._index)
        try:
            if not self._aligned:
                self._align(job, spool)
            if spool.count < job.batch_num:
                spool.add(values)
            if spool.count >= job.batch_num and batches_seen(job) >= job.batch_num:
                _finish(job)
            elif self._index == len(job.watches) - 1:
                _logger.info("%d of %d batches seen", batches_seen(job), job.batch_num)
        except TwinQuantError as error:
            (job.folder / _FAILURE).write_text(str(error), encoding="utf-8")
            raise

    def _warn_if_lost(self) -> None:
        """Say once that a calibration cannot go on; a complete one has no folder either."""
        if self._warned:
            return
        self._warned = True
        record = record_of(self._folder)
        with suppress(OSError, TwinQuantError):  # what else is wrong with the record is told when it is used
            if any(entry.scale_d is None for entry in read_begun_records(record)):
                _logger.warning(
                    "%s is not complete, and what was seen for it is gone with %s; call quantize_model again",
                    record,
                    self._folder,
                )

    def _align(self, job: CalibrationJob, spool: TapSpool) -> None:
        """Forget the batch of a net that was killed in the middle of it: some layers have seen it, others not."""
        self._aligned = True
        complete = batches_seen(job)
        if spool.count > complete:
            spool.cut(complete)


def batches_seen(job: CalibrationJob) -> int:
    """Return how many batches all calibration layers have seen."""
    return min(TapSpool(job, index).count for index in range(len(job.watches)))


def failure(job: CalibrationJob) -> str | None:
    """Return why the batches give no factors; None if nothing was noted."""
    file = job.folder / _FAILURE
    return file.read_text(encoding="utf-8") if file.is_file() else None


def _finish(job: CalibrationJob) -> None:
    """Find the factors, write the record and remove what was kept. Done already, it is left alone."""
    record = Path(job.record)
    begun = read_begun_records(record)
    if all(entry.scale_d is not None for entry in begun):
        return
    stations = [TapSpool(job, index).finished_station() for index in range(len(job.watches))]
    write_record_file(complete_records(begun, stations), record)
    if not job.keep_batches:
        shutil.rmtree(job.folder)
    _logger.info("%s is complete", record)
