"""The accuracy-based search on modules: calibrate once, then try which layers must stay float."""

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
from twinquant.config import read_config
from twinquant.outputs import parse_save_path
from twinquant.records import RecordSet
from twinquant_onnx.framework import OnnxFramework
from twinquant_onnx.modified.sensitivity import layer_similarities
from twinquant_torch.calibration import CalibrationModule
from twinquant_torch.quantize import calibrating_module
from twinquant_torch.source import TorchModel
from twinquant_torch.twin_module import TwinModule

__all__ = ["calibrate_for_accuracy"]

StrPath = str | os.PathLike[str]


def calibrate_for_accuracy(
    source: TorchModel,
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
    original = evaluate_original(evaluator, source.module)
    with TemporaryDirectory() as scratch:
        modified = Path(scratch, "modified.onnx")
        module = calibrating_module(source, config_file, modified, record_file, keep_first_batch=True)
        evaluator.calibration(module)  # type: ignore[arg-type]  # the vendor's evaluators get modules here
        outcome = module.calibration.require_complete()
        assert outcome.graph is not None  # it is no module of balance factors
        layers, origin = outcome.graph.layers, module.calibration.origin

        def metric_of(kept: RecordSet) -> Any:
            output = save_model(modified, kept, Path(scratch, "trial"), save_type="Fakequant", framework="onnx")
            return evaluator.evaluate(TwinModule(output.fake_quant.model, origin.layout, origin.output_spec))  # type: ignore[arg-type]  # as above

        kept = search_records(
            evaluator,
            original,
            outcome.records,
            metric_of=metric_of,
            similarities=lambda: _similarities(module, modified, outcome.records, similarity),
            strategy=chosen,
            config=read_config(config_file, layers),
            record_file=Path(record_file),
            folder=folder,
        )
        save_model(modified, kept, save_dir, framework="onnx")


def _similarities(
    module: CalibrationModule, modified: Path, records: RecordSet, similarity: Similarity
) -> Mapping[str, float]:
    """Compare the layers on the first batch of the calibration."""
    calibration = module.calibration
    assert calibration.first_batch is not None  # it is kept, and there was one
    with TemporaryDirectory() as folder:
        return layer_similarities(
            calibration.graph.model,
            OnnxFramework().load(modified),
            records,
            calibration.first_batch,
            similarity,
            Path(folder),
        )
