"""The calibrations that run when a modified model has seen its batches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from twinquant.calibration.assemble import assemble_records
from twinquant.calibration.batches import observe_batch, taps_of
from twinquant.calibration.layer_weights import input_channel_maxima
from twinquant.calibration.passes import Measurement, measure
from twinquant.calibration.resume import Checkpoint
from twinquant.calibration.station import Station
from twinquant.calibration.watches import plan_watches
from twinquant.config import QuantConfig, read_config
from twinquant.errors import ModelFileError
from twinquant.records import Dialect, LayerRecord, RecordSet, read_begun_records, write_record_file
from twinquant_onnx.framework import OnnxFramework
from twinquant_onnx.layers import LoadedModel, analyse
from twinquant_onnx.load import load_model
from twinquant_onnx.modified.job import CalibrationJob, Purpose
from twinquant_onnx.modified.observation import remove_observation
from twinquant_onnx.modified.spool import BatchSpool

__all__ = ["MEASUREMENTS"]

_logger = logging.getLogger(__name__)


def _measure_factors(job: CalibrationJob, batches: BatchSpool) -> None:
    """Fill the record. The model is fused, and balanced as the record says: its activations are divided inside it."""
    framework, (model, config) = OnnxFramework(), _load(job)
    unbalanced = {name: replace(layer, dmq_migration_strength=None) for name, layer in config.layers.items()}
    config = replace(config, layers=unbalanced)
    measurement = Measurement(
        framework=framework,
        graph=model,
        model=None,
        fuse=False,
        skip_fusion=(),
        watches=plan_watches(model.layers, config),
        source=batches,
        batch_num=job.batch_num,
        weight_maxima=lambda layer: input_channel_maxima(framework.weight(model, layer), f"layer {layer!r}"),
    )
    stations, *_ = measure(measurement, Checkpoint(None, ""), None, lambda words, _: _logger.debug(words))
    measured = assemble_records(framework, model, model.layers, config, stations)
    begun = read_begun_records(Path(job.record)).records
    filled = {
        name: replace(record, tensor_balance_factor=begun[name].tensor_balance_factor) if name in begun else record
        for name, record in measured.records.items()
    }
    write_record_file(replace(measured, records=filled), job.record)


def _measure_balance(job: CalibrationJob, batches: BatchSpool) -> None:
    """Write a record that holds balance factors alone."""
    framework, (model, config) = OnnxFramework(), _load(job)
    watches = plan_watches(model.layers, config)
    stations = [Station(watch) for watch in watches if watch.migration_strength is not None]
    run = framework.activations(model, taps_of(stations))
    for number in range(job.batch_num):
        observe_batch(run, batches, number, job.batch_num, stations)
    records = {}
    for station in stations:
        station.end_pass(lambda layer: input_channel_maxima(framework.weight(model, layer), f"layer {layer!r}"))
        if station.balance is not None:
            (name,) = station.watch.layers
            records[name] = LayerRecord(name, tensor_balance_factor=station.balance)
    write_record_file(RecordSet(records, Dialect.ONNX), job.record)


def _load(job: CalibrationJob) -> tuple[LoadedModel, QuantConfig]:
    if not Path(job.model).is_file():
        raise ModelFileError(
            f"the modified model was moved: it is no longer at {job.model!r}, where it was written; move it back, or "
            "write it anew with quantize_model"
        )
    model = analyse(remove_observation(load_model(job.model)))
    with TemporaryDirectory() as folder:
        config = Path(folder, "config.json")
        config.write_text(job.config, encoding="utf-8")
        return model, read_config(config, model.layers)


MEASUREMENTS: dict[Purpose, Callable[[CalibrationJob, BatchSpool], None]] = {
    Purpose.FACTORS: _measure_factors,
    Purpose.BALANCE: _measure_balance,
}
