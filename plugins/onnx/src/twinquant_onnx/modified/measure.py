"""The calibrations that run when a modified model has seen its batches."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from twinquant.calibration.assemble import complete_records
from twinquant.calibration.batches import observe_batch, taps_of
from twinquant.calibration.check_ranges import check_ranges
from twinquant.calibration.layer_weights import input_channel_maxima
from twinquant.calibration.passes import Measurement, measure
from twinquant.calibration.resume import Checkpoint
from twinquant.calibration.spool import BatchSpool
from twinquant.calibration.station import Station
from twinquant.calibration.watches import plan_watches
from twinquant.errors import ModelFileError
from twinquant.records import Dialect, LayerRecord, RecordSet, write_record_file
from twinquant_onnx.framework import OnnxFramework
from twinquant_onnx.layers import LoadedModel, analyse
from twinquant_onnx.load import load_model
from twinquant_onnx.modified.job import CalibrationJob, Purpose
from twinquant_onnx.modified.observation import remove_observation

__all__ = ["MEASUREMENTS"]

_logger = logging.getLogger(__name__)


def _measure_factors(job: CalibrationJob, batches: BatchSpool) -> None:
    """Fill the record. The activations of balanced layers are divided inside the model."""
    framework, model = OnnxFramework(), _load(job)
    layers = {name: replace(layer, dmq_migration_strength=None) for name, layer in job.config.layers.items()}
    measurement = Measurement(
        framework=framework,
        graph=model,
        model=None,
        fuse=False,
        skip_fusion=(),
        watches=plan_watches(model.layers, replace(job.config, layers=layers)),
        source=batches,
        batch_num=job.batch_num,
        weight_maxima=lambda layer: input_channel_maxima(framework.weight(model, layer), f"layer {layer!r}"),
    )
    stations, *_ = measure(measurement, Checkpoint(None, ""), None, lambda words, _: _logger.debug(words))
    check_ranges(
        stations,
        job.batch_num,
        way_out="switch their layers off in the configuration (quant_enable: false), and call quantize_model again",
    )
    write_record_file(complete_records(job.begun, stations), job.record)


def _measure_balance(job: CalibrationJob, batches: BatchSpool) -> None:
    """Write a record that holds balance factors alone."""
    framework, model = OnnxFramework(), _load(job)
    watches = plan_watches(model.layers, job.config)
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


def _load(job: CalibrationJob) -> LoadedModel:
    if not Path(job.model).is_file():
        raise ModelFileError(
            f"the modified model was moved: it is no longer at {job.model!r}, where it was written; move it back, or "
            "write it anew with quantize_model"
        )
    return analyse(remove_observation(load_model(job.model)))


MEASUREMENTS: dict[Purpose, Callable[[CalibrationJob, BatchSpool], None]] = {
    Purpose.FACTORS: _measure_factors,
    Purpose.BALANCE: _measure_balance,
}
