"""What happens with the batches of a modified model: stored, and calibrated with as soon as there are enough."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.calibration.spool import BatchSpool
from twinquant.errors import CalibrationError, TwinQuantError
from twinquant_onnx.modified.job import CalibrationJob
from twinquant_onnx.modified.measure import MEASUREMENTS
from twinquant_onnx.modified.progress import RecordWatch

__all__ = ["receive_batch"]

Array = npt.NDArray[Any]

_logger = logging.getLogger(__name__)


def receive_batch(job: CalibrationJob, arrays: Sequence[Array], records: RecordWatch) -> None:
    """Store one batch; with the last one wanted, calibrate, write the record and remove the stored batches.

    Args:
        job: what the batches are for.
        arrays: the inputs, in the order of `job.inputs`; stored in the element types that the model has.
        records: the record files that batches were for before.

    Raises:
        TwinQuantError: the batches give no factors, or the record cannot be written; all later batches fail alike.
        OSError: the batch cannot be stored.
    """
    if records.is_finished(job):
        _logger.info("%s is complete: a further batch is ignored; quantize_model starts anew", job.record)
        return
    spool = BatchSpool(job.folder, job.inputs)
    if dropped := spool.open():
        _logger.warning("%d of %d batches that another process stored are dropped", dropped, job.batch_num)
    if reason := spool.failure():
        raise CalibrationError(reason)
    # There may be enough already: the calibration itself was interrupted.
    if spool.count < job.batch_num:
        typed = zip(arrays, job.element_types, strict=True)
        spool.add([np.asarray(array, dtype) for array, dtype in typed])
        _logger.info("%d of %d batches seen", spool.count, job.batch_num)
    if spool.count < job.batch_num:
        return
    try:
        MEASUREMENTS[job.purpose](job, spool)
    except TwinQuantError as error:
        spool.fail(str(error))
        raise
    if not job.keep_batches:
        spool.clear()
    _logger.info("%s is complete", job.record)
