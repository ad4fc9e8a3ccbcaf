"""The accuracy-based search as every framework does it: evaluate, choose the float layers, report."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from twinquant.calibration.auto import Search, Strategy, search_float_layers
from twinquant.calibration.auto_report import write_final_config, write_report
from twinquant.calibration.evaluation import ModelEvaluator
from twinquant.config import QuantConfig
from twinquant.errors import ArgumentError, CalibrationError
from twinquant.records import RecordSet, write_record_file

__all__ = ["evaluate_original", "search_records"]

_logger = logging.getLogger(__name__)


def evaluate_original(evaluator: ModelEvaluator, model: Any) -> Any:
    """Return the accuracy of the float model, which the evaluator itself must accept.

    Args:
        evaluator: the user's.
        model: what it evaluates.

    Raises:
        ArgumentError: the evaluator lacks a method, or does not accept the float model's own accuracy.
    """
    for name in ("calibration", "evaluate", "metric_eval"):
        if not callable(getattr(evaluator, name, None)):
            raise ArgumentError(f"model_evaluator: has no method {name!r}; derive its class from ModelEvaluator")
    original = evaluator.evaluate(model)
    if not _verdict(evaluator, original, original)[0]:
        raise ArgumentError(
            "model_evaluator: metric_eval does not accept the original model's own accuracy, so no quantized model can "
            "be good enough; check its comparison"
        )
    return original


def search_records(
    evaluator: ModelEvaluator,
    original: Any,
    records: RecordSet,
    *,
    metric_of: Callable[[RecordSet], Any],
    similarities: Callable[[], Mapping[str, float]],
    strategy: Strategy,
    config: QuantConfig,
    record_file: Path,
    folder: Path,
) -> RecordSet:
    """Find the layers that can be quantized, write the reports and the record, and return its records.

    The reports are written after every trial, the record after every one that is the best so far and accurate enough: a
    search that is killed, or whose evaluator fails, leaves them behind. Until there is such a trial the record is
    empty.

    Args:
        evaluator: the user's.
        original: the accuracy of the float model.
        records: the factors of all layers.
        metric_of: evaluates the model with some layers quantized.
        similarities: see `search_float_layers`.
        strategy: which sets of layers are tried.
        config: what was calibrated.
        record_file: where the records go that are left.
        folder: where the reports go.

    Raises:
        CalibrationError: no set of layers holds the accuracy; the report is written all the same.
        OutputError: a file cannot be written.
    """

    def evaluate(float_layers: Collection[str]) -> tuple[bool, float]:
        kept = _without(records, float_layers)
        if not len(kept):
            return False, math.inf  # a model without a quantized layer is no result
        return _verdict(evaluator, original, metric_of(kept))

    def note(search: Search) -> None:
        write_report(search, folder)
        if search.best.satisfied:
            write_record_file(_without(records, search.best.float_layers), record_file)
            write_final_config(config, search.best.float_layers, folder)

    # Calibration has filled it with the factors of all layers, which nothing says can be quantized together.
    write_record_file(replace(records, records={}), record_file)
    search = search_float_layers(similarities, evaluate, strategy, note)
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
    write_record_file(kept, record_file)
    write_final_config(config, best.float_layers, folder)
    return kept


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
