"""What happens with the values that pass a calibration layer."""

from __future__ import annotations

import json
import logging
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.calibration.spool import BatchSpool
from twinquant.errors import CalibrationError, TwinQuantError
from twinquant.records import RecordSet, read_begun_records
from twinquant_caffe.modified.job import CalibrationJob, record_of, remove_job
from twinquant_caffe.modified.measure import fill_record
from twinquant_caffe.modified.replay import check_present

__all__ = ["TapObserver"]

_logger = logging.getLogger(__name__)

_one_at_a_time = threading.Lock()
"""Nets in several threads may feed one calibration."""


class TapObserver:
    """One calibration layer at work, behind one input. What has to last is on the disk.

    Args:
        settings: the layer's param_str: JSON with the `folder` of the job, the `input`, and the key of the `job`.
    """

    def __init__(self, settings: str) -> None:
        fields = json.loads(settings)
        self._folder, self._input, self._key = Path(fields["folder"]), str(fields["input"]), fields["job"]
        self._began = False
        self._warned = False

    def observe(self, values: npt.NDArray[Any]) -> None:
        """Take the values of one batch; what comes when the calibration is over just passes.

        The last input of the last batch brings the whole calibration.

        Args:
            values: float32, any shape.

        Raises:
            TwinQuantError: the net is older than the job, the values give no factors, or the record cannot be written.
            OSError: the values cannot be stored.
        """
        job = CalibrationJob.read(self._folder)
        if job is None:
            self._warn_if_lost()
            return
        if job.key != self._key:
            raise CalibrationError(
                f"this modified net is older than what {job.record!r} is waiting for: quantize_model was called again; "
                f"run {job.model!r}"
            )
        with _one_at_a_time:
            self._receive(job, values)

    def _receive(self, job: CalibrationJob, values: npt.NDArray[Any]) -> None:
        spool = job.spool
        # The record may be complete: batches were kept, or the process that filled it was killed before it cleaned up.
        if (spool.count >= job.batch_num or not spool.is_open) and _is_complete(read_begun_records(Path(job.record))):
            _clean_up(job)
            return
        check_present(job)
        if self._began and not spool.is_open:
            raise _taken_over(job)
        if dropped := spool.open():
            _logger.warning("%d of %d batches that another process stored are dropped", dropped, job.batch_num)
        self._began = True
        if reason := spool.failure():
            raise CalibrationError(reason)
        try:
            _take(job, spool, self._input, values)
        except TwinQuantError as error:
            if not spool.is_open:
                raise _taken_over(job) from error
            spool.fail(str(error))
            raise

    def _warn_if_lost(self) -> None:
        """Say once that a calibration cannot go on; a complete one has no folder either."""
        if self._warned:
            return
        self._warned = True
        record = record_of(self._folder)
        with suppress(OSError, TwinQuantError):  # what else is wrong with the record is told when it is used
            if not _is_complete(read_begun_records(record)):
                _logger.warning(
                    "%s is not complete, and what was seen for it is gone with %s; call quantize_model again",
                    record,
                    self._folder,
                )


def _taken_over(job: CalibrationJob) -> CalibrationError:
    return CalibrationError(
        f"the batches that this process stored for {job.record!r} are gone: another process runs {job.model!r}, too; "
        "one has to run all batches"
    )


def _is_complete(records: RecordSet) -> bool:
    """Tell whether the modified net has nothing to add to a record: `quantize_model` begins it for every layer."""
    return len(records) > 0 and all(entry.scale_d is not None for entry in records)


def _take(job: CalibrationJob, spool: BatchSpool, name: str, values: npt.NDArray[Any]) -> None:
    """Store an input; with the last one wanted, fill the record and remove what was stored."""
    if spool.count < job.batch_num:
        if not np.isfinite(values).all():
            raise CalibrationError(f"input {name!r}, batch {spool.count + 1}: it holds NaN or infinity")
        if not spool.add_input(name, values):
            return
        _logger.info("%d of %d batches seen", spool.count, job.batch_num)
    # There may have been enough before: the calibration itself was interrupted.
    if spool.count >= job.batch_num:
        fill_record(job)
        _logger.info("%s is complete", job.record)
        _clean_up(job)


def _clean_up(job: CalibrationJob) -> None:
    if not job.keep_batches:
        remove_job(Path(job.record))
