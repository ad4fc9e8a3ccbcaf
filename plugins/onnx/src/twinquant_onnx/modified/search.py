"""The accuracy-based search on ONNX models: calibrate once, then try which layers must stay float."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twinquant.api import save_model
from twinquant.calibration.auto import choose_strategy
from twinquant.calibration.auto_flow import evaluate_original, search_records
from twinquant.calibration.evaluation import ModelEvaluator, Similarity, choose_similarity
from twinquant.calibration.spool import BatchSpool
from twinquant.config import QuantConfig, read_config
from twinquant.errors import CalibrationError
from twinquant.outputs import parse_save_path
from twinquant.records import RecordSet, parse_record_file
from twinquant_onnx.framework import OnnxFramework
from twinquant_onnx.modified.job import CalibrationJob
from twinquant_onnx.modified.progress import RecordWatch
from twinquant_onnx.modified.quantize import Habit, make_calibrating_model
from twinquant_onnx.modified.sensitivity import layer_similarities

__all__ = ["calibrate_for_accuracy"]

StrPath = str | os.PathLike[str]


def calibrate_for_accuracy(
    model_file: StrPath,
    evaluator: ModelEvaluator,
    config_file: StrPath,
    record_file: StrPath,
    save_dir: StrPath,
    *,
    strategy: Any,
    sensitivity: Any,
) -> None:
    """Quantize a model with few layers left in float; see `amct.accuracy_based_auto_calibration`."""
    chosen, similarity = choose_strategy(strategy), choose_similarity(sensitivity)
    folder = parse_save_path(save_dir).folder
    original = evaluate_original(evaluator, os.fspath(model_file))
    with TemporaryDirectory() as scratch:
        modified, unrounded = Path(scratch, "modified.onnx"), Path(scratch, "unrounded.onnx")
        files = Habit.of(config=config_file, model=model_file, modified=modified, record=record_file)
        job = make_calibrating_model(files, keep_batches=True, unrounded=unrounded)
        try:
            records = _calibrate(evaluator, job)

            def metric_of(kept: RecordSet) -> Any:
                output = save_model(unrounded, kept, Path(scratch, "trial"), save_type="Fakequant", framework="onnx")
                return evaluator.evaluate(str(output.fake_quant.model))

            kept = search_records(
                evaluator,
                original,
                records,
                metric_of=metric_of,
                similarities=lambda: _similarities(files, unrounded, job, records, similarity),
                strategy=chosen,
                config=_configuration(files),
                record_file=files.record,
                folder=folder,
            )
        finally:
            BatchSpool(job.folder, job.inputs).clear()
        save_model(unrounded, kept, save_dir, framework="onnx")


def _calibrate(evaluator: ModelEvaluator, job: CalibrationJob) -> RecordSet:
    """Let the evaluator run the modified model, and return the factors that this gives.

    Raises:
        CalibrationError: it ran too few batches, or they give no factors.
    """
    spool = BatchSpool(job.folder, job.inputs)
    try:
        evaluator.calibration(job.model)
    except Exception as error:  # the user's code; if our operators failed, ONNX Runtime hides why
        failure = spool.failure()
        if failure is None:
            raise
        raise CalibrationError(f"model_evaluator.calibration: {failure}") from error
    if failure := spool.failure():
        raise CalibrationError(f"model_evaluator.calibration: {failure}")
    if not RecordWatch().is_finished(job):
        raise CalibrationError(
            f"model_evaluator.calibration ran {spool.count} of {job.batch_num} batches; it has to run the model that "
            f"it is given, in a session with AMCT_SO, on {job.batch_num} batches (batch_num of the configuration)"
        )
    return parse_record_file(job.record)


def _similarities(
    files: Habit, unrounded: Path, job: CalibrationJob, records: RecordSet, similarity: Similarity
) -> Mapping[str, float]:
    """Compare the layers on the first batch of the calibration."""
    framework = OnnxFramework()
    model, config = framework.load(files.model), _configuration(files)
    if config.do_fusion:
        model, _ = framework.fuse(model, config.skip_fusion_layers)
    feeds = BatchSpool(job.folder, job.inputs).batch(0)
    if feeds is None:
        raise CalibrationError(f"the batches of {str(files.modified)!r} are gone; no sensitivity can be measured")
    with TemporaryDirectory() as folder:
        return layer_similarities(model, framework.load(unrounded), records, feeds, similarity, Path(folder))


def _configuration(files: Habit) -> QuantConfig:
    return read_config(files.config, OnnxFramework().load(files.model).layers)
