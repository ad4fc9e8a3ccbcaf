"""Making the models that calibrate when they run: `quantize_model` and `quantize_preprocess`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from twinquant.calibration.assemble import begin_records
from twinquant.calibration.recorded_balance import balanced_layers, recorded_balance
from twinquant.calibration.settings import trained_layers
from twinquant.calibration.spool import BatchSpool
from twinquant.calibration.watches import plan_watches
from twinquant.config import QuantConfig, read_config
from twinquant.errors import ArgumentError, ConfigError, OutputPathError
from twinquant.outputs import staging_folder
from twinquant.plan import LayerKind, WeightQuant
from twinquant.records import Dialect, LayerRecord, RecordSet, write_record_file
from twinquant_onnx.framework import OnnxFramework
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.insert import round_weights
from twinquant_onnx.layers import LoadedModel, analyse
from twinquant_onnx.modified.balancing import divide_activations
from twinquant_onnx.modified.job import CalibrationJob, Purpose
from twinquant_onnx.modified.observation import data_inputs, observe_inputs
from twinquant_onnx.write import write_model

__all__ = ["Habit", "make_balancing_model", "make_calibrating_model"]

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Habit:
    """The files of one calibration in the vendor's way.

    Attributes:
        config: the configuration, as JSON.
        model: the float model.
        modified: the model that calibrates when it runs.
        record: the record file that it fills.
    """

    config: Path
    model: Path
    modified: Path
    record: Path

    @classmethod
    def of(cls, *, config: StrPath, model: StrPath, modified: StrPath, record: StrPath) -> Habit:
        """Return the files by absolute paths: the modified model may run in another working folder."""
        files = (config, model, modified, record)
        return cls(*(Path(os.path.abspath(path)) for path in files))  # noqa: PTH100  Path.absolute keeps the ".."


_UNROUNDED = (LayerKind.CONV_TRANSPOSE,)
"""Kinds of layers that are calibrated with float weights, although their twins have integers: measured on the vendor's
modified models. Rounded weights would change the activations behind them, and those records, by some hundredths."""


def make_calibrating_model(
    files: Habit, *, weights_balanced: bool = False, keep_batches: bool = False, unrounded: Path | None = None
) -> CalibrationJob:
    """Write the model that measures scales and offsets, and begin the record; see `amct.quantize_model`.

    Args:
        files: what is read and written.
        weights_balanced: the model's weights are multiplied by the record's balance factors already.
        keep_batches: whether the stored batches stay when the record is complete.
        unrounded: where the same model goes with its float weights, and without what calibrates it, for twins in which
            only some of the layers are quantized; None: nowhere.
    """
    model, config = _load(files)
    framework = OnnxFramework()
    watched = {layer for watch in plan_watches(model.layers, config) for layer in watch.layers}
    factors = recorded_balance(
        config, model.layers, files.record, framework=framework.name, config_name=files.config.name
    )
    multiplied = weights_balanced or model.graph.undivided
    if multiplied and not factors:
        raise ConfigError(
            f"{files.config.name}: no layer has a dmq_balancer_param, but the weights of the model are balanced; give "
            "one to the layers for which the record has a tensor_balance_factor",
            path="$",
        )
    # The scales have to be those of the float weights: those of rounded ones may be another float32.
    quantized = [layer for layer in model.layers if layer.name in watched]
    begun = begin_records(framework, model, quantized, config, {} if multiplied else factors)
    if multiplied:
        begun = _with_balance(begun, factors)
    elif factors:
        model = framework.balance(model, factors)
    if unrounded is not None:
        framework.write_float(model, unrounded.parent, unrounded.name)
    rounded = [begun.records[layer.name] for layer in quantized if layer.kind not in _UNROUNDED]
    graph = round_weights(model, _grids(rounded, config))
    if factors:
        graph = divide_activations(analyse(graph), factors)
    return _write(graph, files, config, Purpose.FACTORS, begun, keep_batches=keep_batches)


def _with_balance(begun: RecordSet, factors: Mapping[str, npt.NDArray[np.float32]]) -> RecordSet:
    records = {
        name: replace(record, tensor_balance_factor=factors[name]) if name in factors else record
        for name, record in begun.records.items()
    }
    return replace(begun, records=records)


def _grids(
    records: Iterable[LayerRecord], config: QuantConfig
) -> dict[str, tuple[WeightQuant | None, WeightQuant | None]]:
    """Return how the weight, and an RNN's recurrence weight, of every layer are quantized; None: it has none."""

    def grid(scale: npt.NDArray[np.float32], layer: str) -> WeightQuant | None:
        return WeightQuant(scale, config.layers[layer].weight.num_bits) if scale.size else None

    return {record.key: (grid(record.scale_w, record.key), grid(record.scale_r, record.key)) for record in records}


def make_balancing_model(files: Habit) -> None:
    """Write the model that measures balance factors, and an empty record; see `amct.quantize_preprocess`."""
    model, config = _load(files)
    if not balanced_layers(config):
        raise ConfigError(
            f"{files.config.name}: no layer has a dmq_balancer_param, so there is nothing to balance; add dmq_balancer "
            "to the configuration, or go on with quantize_model",
            path="$",
        )
    _write(model.graph, files, config, Purpose.BALANCE, RecordSet({}, Dialect.ONNX))


def _load(files: Habit) -> tuple[LoadedModel, QuantConfig]:
    """Return the model, fused as configured, and the configuration."""
    framework = OnnxFramework()
    loaded = framework.load(files.model)
    config = read_config(files.config, loaded.layers)
    trained_layers(framework, config)  # refuses them
    if files.modified == files.record:
        raise ArgumentError(f"the modified model and the record are both {str(files.record)!r}; give them two names")
    _refuse_inputs((files.config, *loaded.graph.inputs), (files.modified, files.record))
    if config.do_fusion:
        loaded, _ = framework.fuse(loaded, config.skip_fusion_layers)
    return loaded, config


def _write(
    graph: OnnxGraph,
    files: Habit,
    config: QuantConfig,
    purpose: Purpose,
    begun: RecordSet,
    *,
    keep_batches: bool = False,
) -> CalibrationJob:
    """Write a modified model and a record with the balance factors, and return its job; stored batches are dropped."""
    types = data_inputs(graph)
    job = CalibrationJob(
        purpose,
        str(files.modified),
        str(files.record),
        config,
        begun,
        tuple(types),
        tuple(types.values()),
        keep_batches,
    )
    balanced = {
        record.key: LayerRecord(record.key, tensor_balance_factor=record.tensor_balance_factor)
        for record in begun
        if record.tensor_balance_factor.size
    }
    observed = observe_inputs(graph, job)
    folder = files.modified.parent
    with staging_folder(folder) as staging:
        # The name is in the names of external data files, which two modified models of a folder must not share.
        model, *others = write_model(observed, staging, "", f"{files.modified.stem}.modified")
        for path in others:
            path.replace(folder / path.name)
        files.record.parent.mkdir(parents=True, exist_ok=True)
        BatchSpool(job.folder, job.inputs).clear()
        write_record_file(replace(begun, records=balanced), files.record)
        model.replace(files.modified)
    return job


def _refuse_inputs(inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    taken = {path.resolve() for path in inputs}
    for path in outputs:
        if path.resolve() in taken:
            raise OutputPathError(
                f"{str(path)!r} is an input of this call and would be overwritten; choose another name"
            )
