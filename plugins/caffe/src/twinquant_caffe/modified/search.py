"""The accuracy-based search on Caffe nets: calibrate once, then try which layers must stay float."""

from __future__ import annotations

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twinquant.api import save_model
from twinquant.calibration.auto import choose_strategy
from twinquant.calibration.auto_flow import evaluate_original, search_records
from twinquant.calibration.evaluation import ModelEvaluator, choose_similarity
from twinquant.errors import ArgumentError
from twinquant.outputs import parse_save_path
from twinquant.records import RecordSet
from twinquant_caffe.modified.job import remove_job
from twinquant_caffe.modified.progress import finished_records
from twinquant_caffe.modified.quantize import StrPath, make_calibrating_net, open_graph
from twinquant_caffe.modified.sensitivity import layer_similarities

__all__ = ["calibrate_for_accuracy"]

_METHODS = ("calibration", "evaluate", "metric_eval")


class _PairEvaluator(ModelEvaluator):
    """The user's evaluator, which takes a net as two files, as one that takes a pair."""

    def __init__(self, evaluator: Any) -> None:
        for name in _METHODS:
            if not callable(getattr(evaluator, name, None)):
                raise ArgumentError(
                    f"model_evaluator: has no method {name!r}; it needs calibration(model_file, weights_file), "
                    "evaluate(model_file, weights_file) and metric_eval(original_metric, new_metric)"
                )
        self._evaluator = evaluator

    def calibration(self, modified_model_file: Any) -> None:
        """Run a modified net."""
        self._evaluator.calibration(*map(os.fspath, modified_model_file))

    def evaluate(self, model_file: Any) -> Any:
        """Return the accuracy of a net."""
        return self._evaluator.evaluate(*map(os.fspath, model_file))

    def metric_eval(self, original_metric: Any, new_metric: Any) -> tuple[bool, float]:
        """Ask the user's evaluator."""
        answer: tuple[bool, float] = self._evaluator.metric_eval(original_metric, new_metric)
        return answer


def calibrate_for_accuracy(
    model_file: StrPath,
    weights_file: StrPath,
    evaluator: Any,
    config_file: StrPath,
    record_file: StrPath,
    save_dir: StrPath,
    *,
    strategy: Any,
    sensitivity: Any,
) -> None:
    """Quantize a net with few layers left in float; see `amct.accuracy_based_auto_calibration`."""
    chosen, similarity = choose_strategy(strategy), choose_similarity(sensitivity)
    pairwise = _PairEvaluator(evaluator)
    folder = parse_save_path(save_dir).folder
    graph = open_graph(config_file, model_file, weights_file, record_file)
    source = (graph.model, graph.weights)
    original = evaluate_original(pairwise, source)
    with TemporaryDirectory() as scratch:
        modified = Path(scratch, "modified.prototxt"), Path(scratch, "modified.caffemodel")
        job = make_calibrating_net(graph, *modified, keep_batches=True)
        try:
            pairwise.calibration(modified)
            records = finished_records(graph)
            net, config = graph.load()

            def metric_of(kept: RecordSet) -> Any:
                output = save_model(net, kept, Path(scratch, "trial"), save_type="Fakequant", framework="caffe")
                return pairwise.evaluate(output.fake_quant.files)

            kept = search_records(
                pairwise,
                original,
                records,
                metric_of=metric_of,
                similarities=lambda: layer_similarities(net, records, job, similarity),
                strategy=chosen,
                config=config,
                record_file=graph.record,
                folder=folder,
            )
        finally:
            remove_job(graph.record)
    save_model(net, kept, save_dir, framework="caffe")
