"""How far the calibration of a modified model is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twinquant.calibration.spool import BatchSpool
from twinquant.errors import ArgumentError, RecordFileError
from twinquant.records import read_begun_records
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.load import read_skeleton
from twinquant_onnx.modified.job import CalibrationJob, Purpose
from twinquant_onnx.modified.observation import read_job

__all__ = ["RecordWatch", "check_finished"]


class RecordWatch:
    """Tells whether records hold what their jobs measure, and reads a record file again only after it has changed."""

    def __init__(self) -> None:
        self._known: dict[tuple[Purpose, str], tuple[tuple[int, ...], bool]] = {}

    def is_finished(self, job: CalibrationJob) -> bool:
        """Tell whether the record holds what the job measures.

        Raises:
            RecordError: the file is no record file.
        """
        try:
            status = Path(job.record).stat()
        except FileNotFoundError:
            return False
        # A file that is replaced is another one, also where it has the size and the time of the old one.
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        known = self._known.get((job.purpose, job.record))
        if known is None or known[0] != stamp:
            known = self._known[job.purpose, job.record] = stamp, _is_finished(job)
        return known[1]


def _is_finished(job: CalibrationJob) -> bool:
    records = read_begun_records(Path(job.record))
    if job.purpose is Purpose.BALANCE:
        return any(record.tensor_balance_factor.size for record in records)
    return any(record.scale_d is not None for record in records)


def check_finished(model: Any, record: Any) -> None:
    """Refuse to save a modified model whose batches have not all been seen. Anything else passes.

    Args:
        model: the model that is to be saved: a path, or an object, which is never a modified model.
        record: the record that it is to be saved with.

    Raises:
        ArgumentError: the model is for balance factors only.
        ModelFileError: the file is missing or no ONNX model.
        RecordFileError: the calibration has not finished; the message says how many batches it has seen, or why it
            failed.
    """
    if not isinstance(model, (str, os.PathLike)) or not isinstance(record, (str, os.PathLike)):
        return
    job = read_job(OnnxGraph(*read_skeleton(Path(model))))
    if job is None:
        return
    if job.purpose is Purpose.BALANCE:
        raise ArgumentError(
            f"{os.fspath(model)!r} was made by quantize_preprocess and measures balance factors only; call "
            "quantize_model with the same configuration and record file, and save the model that it writes"
        )
    if any(entry.scale_d is not None for entry in read_begun_records(Path(record))):
        return
    spool = BatchSpool(job.folder, job.inputs)
    why = spool.failure() or f"{spool.count} of {job.batch_num} batches seen"
    raise RecordFileError(
        f"record file {os.fspath(record)!r}: calibration has not finished: {why}; run {os.fspath(model)!r} in a "
        f"session with AMCT_SO on {job.batch_num} batches, then save"
    )
