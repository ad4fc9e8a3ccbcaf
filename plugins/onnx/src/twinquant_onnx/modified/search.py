"""The accuracy-based search on ONNX models: calibrate once, then try which layers must stay float."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from twinquant.api import save_model
from twinquant.calibration.auto import choose_strategy, search_float_layers
from twinquant.calibration.evaluation import ModelEvaluator, Similarity, choose_similarity
from twinquant.config import QuantConfig, read_config
from twinquant.errors import ArgumentError, CalibrationError
from twinquant.outputs import parse_save_path
from twinquant.records import RecordSet, parse_record_file, write_record_file
from twinquant_onnx.framework import OnnxFramework
from twinquant_onnx.modified.job import CalibrationJob
from twinquant_onnx.modified.progress import check_finished
from twinquant_onnx.modified.quantize import Habit, make_calibrating_model
from twinquant_onnx.modified.report import write_final_config, write_report
from twinquant_onnx.modified.sensitivity import layer_similarities
from twinquant_onnx.modified.spool import BatchSpool

__all__ = ["calibrate_for_accuracy"]

StrPath = str | os.PathLike[str]

_logger = logging.getLogger(__name__)


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
    _check_evaluator(evaluator)
    folder = parse_save_path(save_dir).folder
    original = evaluator.evaluate(os.fspath(model_file))
    if not _verdict(evaluator, original, original)[0]:
        raise ArgumentError(
            "model_evaluator: metric_eval does not accept the original model's own accuracy, so no quantized model can "
            "be good enough; check its comparison"
        )
    with TemporaryDirectory() as scratch:
        modified = Path(scratch, "modified.onnx")
        files = Habit.of(config=config_file, model=model_file, modified=modified, record=record_file)
        job = make_calibrating_model(files, keep_batches=True)
        try:
            evaluator.calibration(str(modified))
            check_finished(modified, files.record)
            records = parse_record_file(files.record)

            def evaluate(float_layers: Collection[str]) -> tuple[bool, float]:
                kept = _without(records, float_layers)
                if not len(kept):
                    return False, math.inf  # a model without a quantized layer is no result
                output = save_model(modified, kept, Path(scratch, "trial"), save_type="Fakequant", framework="onnx")
                metric = evaluator.evaluate(str(output.fake_quant.model))
                return _verdict(evaluator, original, metric)

            search = search_float_layers(lambda: _similarities(files, job, records, similarity), evaluate, chosen)
        finally:
            BatchSpool(job.folder, job.inputs).clear()
        best = search.best
        write_report(search, folder)
        if not best.satisfied:
            problem = (
                f"none of the {len(search.trials)} trials holds the accuracy; the best one loses {best.loss:g} with "
                f"{len(best.float_layers)} layers in float"
            )
            if not search.stopped:
                raise CalibrationError(f"{problem}. Allow more loss in metric_eval, or configure another algorithm")
            _logger.warning("%s. It is saved, as the search was stopped", problem)
        kept = _without(records, best.float_layers)
        write_record_file(kept, files.record)
        write_final_config(_configuration(files), best.float_layers, folder)
        save_model(modified, kept, save_dir, framework="onnx")


def _check_evaluator(evaluator: Any) -> None:
    for name in ("calibration", "evaluate", "metric_eval"):
        if not callable(getattr(evaluator, name, None)):
            raise ArgumentError(f"model_evaluator: has no method {name!r}; derive its class from ModelEvaluator")


def _verdict(evaluator: ModelEvaluator, original: Any, new: Any) -> tuple[bool, float]:
    """Return what the evaluator thinks of a model; NumPy's arrays of one element are numbers, too."""
    answer = evaluator.metric_eval(original, new)
    try:
        satisfied, loss = answer
        return bool(satisfied), float(np.asarray(loss, np.float64).item())
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f"model_evaluator: metric_eval must return (whether the accuracy is good enough, its loss), got {answer!r}"
        ) from error


def _without(records: RecordSet, float_layers: Collection[str]) -> RecordSet:
    return replace(records, records={key: value for key, value in records.records.items() if key not in float_layers})


def _similarities(files: Habit, job: CalibrationJob, records: RecordSet, similarity: Similarity) -> Mapping[str, float]:
    """Compare the layers on the first batch of the calibration."""
    framework = OnnxFramework()
    model, config = framework.load(files.model), _configuration(files)
    if config.do_fusion:
        model, _ = framework.fuse(model, config.skip_fusion_layers)
    feeds = BatchSpool(job.folder, job.inputs).batch(0)
    if feeds is None:
        raise CalibrationError(f"the batches of {str(files.modified)!r} are gone; no sensitivity can be measured")
    with TemporaryDirectory() as folder:
        return layer_similarities(model, framework.load(files.modified), records, feeds, similarity, Path(folder))


def _configuration(files: Habit) -> QuantConfig:
    return read_config(files.config, OnnxFramework().load(files.model).layers)
