"""Making the models that calibrate when they run: `quantize_model` and `quantize_preprocess`."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from twinquant.calibration.recorded_balance import balanced_layers, recorded_balance
from twinquant.calibration.settings import trained_layers
from twinquant.config import QuantConfig, read_config
from twinquant.errors import ArgumentError, ConfigError, OutputPathError
from twinquant.outputs import staging_folder
from twinquant.records import Dialect, LayerRecord, RecordSet, write_record_file
from twinquant_onnx.framework import OnnxFramework
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.layers import LoadedModel
from twinquant_onnx.modified.balancing import divide_activations
from twinquant_onnx.modified.job import CalibrationJob, Purpose
from twinquant_onnx.modified.observation import data_inputs, observe_inputs
from twinquant_onnx.modified.spool import BatchSpool
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


def make_calibrating_model(files: Habit, *, keep_batches: bool = False) -> CalibrationJob:
    """Write the model that measures scales and offsets, and begin the record; see `amct.quantize_model`.

    Args:
        files: what is read and written.
        keep_batches: whether the stored batches stay when the record is complete.
    """
    model, config = _load(files)
    framework = OnnxFramework()
    factors = recorded_balance(
        config, model.layers, files.record, framework=framework.name, config_name=files.config.name
    )
    graph = model.graph
    if factors:
        graph = divide_activations(framework.balance(model, factors), factors)
    begun = {name: LayerRecord(name, tensor_balance_factor=values) for name, values in factors.items()}
    return _write(graph, files, config, Purpose.FACTORS, RecordSet(begun, Dialect.ONNX), keep_batches=keep_batches)


def make_balancing_model(files: Habit) -> None:
    """Write the model that measures balance factors, and an empty record; see `amct.quantize_preprocess`."""
    model, config = _load(files)
    if not balanced_layers(config):
        raise ConfigError(
            f"{files.config.name}: no layer has a dmq_balancer_param, so there is nothing to balance; add dmq_balancer "
            "to the configuration, or go on with quantize_model",
            path="$",
        )
    _write(model.graph, files, config, Purpose.BALANCE, RecordSet({}))


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
    records: RecordSet,
    *,
    keep_batches: bool = False,
) -> CalibrationJob:
    """Write a modified model and the record that it starts with, and return its job; stored batches are dropped."""
    types = data_inputs(graph)
    job = CalibrationJob(
        purpose,
        str(files.modified),
        str(files.record),
        files.config.read_text(encoding="utf-8-sig"),
        config.batch_num,
        tuple(types),
        tuple(types.values()),
        keep_batches,
    )
    observed = observe_inputs(graph, job)
    folder = files.modified.parent
    with staging_folder(folder) as staging:
        # The name is in the names of external data files, which two modified models of a folder must not share.
        model, *others = write_model(observed, staging, "", f"{files.modified.stem}.modified")
        for path in others:
            path.replace(folder / path.name)
        files.record.parent.mkdir(parents=True, exist_ok=True)
        BatchSpool(job.folder, job.inputs).clear()
        write_record_file(records, files.record)
        model.replace(files.modified)
    return job


def _refuse_inputs(inputs: Iterable[Path], outputs: Iterable[Path]) -> None:
    taken = {path.resolve() for path in inputs}
    for path in outputs:
        if path.resolve() in taken:
            raise OutputPathError(
                f"{str(path)!r} is an input of this call and would be overwritten; choose another name"
            )
