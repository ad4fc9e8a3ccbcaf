"""Making the modules that calibrate when they run: `quantize_model` and `quantize_preprocess`."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from twinquant.calibration.assemble import assemble_records
from twinquant.calibration.layer_weights import input_channel_maxima
from twinquant.calibration.settings import trained_layers
from twinquant.calibration.station import Station
from twinquant.calibration.watches import Watch, plan_watches
from twinquant.config import QuantConfig, read_config
from twinquant.errors import ConfigError, OutputPathError, OutputWriteError
from twinquant.outputs import staging_folder
from twinquant.records import Dialect, LayerRecord, RecordSet, read_begun_records
from twinquant_onnx.modified.balancing import divide_activations
from twinquant_onnx.write import write_model
from twinquant_torch.calibration import Calibration, CalibrationModule, Outcome
from twinquant_torch.distributed import on_writer
from twinquant_torch.framework import TorchFramework
from twinquant_torch.graph import TorchGraph, TorchOrigin
from twinquant_torch.load import unwrapped
from twinquant_torch.rounding import round_weights
from twinquant_torch.source import TorchModel

__all__ = ["calibrating_module", "module_for_balancing"]

Float32Array = npt.NDArray[np.float32]
StrPath = str | os.PathLike[str]


def calibrating_module(
    source: TorchModel, config_file: StrPath, modified: StrPath, record: StrPath, *, keep_first_batch: bool = False
) -> CalibrationModule:
    """Return the module that measures scales and offsets, and write the modified model; see `amct.quantize_model`.

    Args:
        source: the float model.
        config_file: the configuration.
        modified: the ONNX file to write.
        record: the record to begin.
        keep_first_batch: whether the first batch is kept when the record is complete.
    """
    modified_file, record_file = _absolute(modified), _absolute(record)
    _refuse_inputs(Path(config_file), (modified_file, record_file))
    graph, config = _load(source, config_file)
    trained = trained_layers(TorchFramework(), config)
    factors = _balance_factors(config, Path(config_file).name, record_file)
    begun = RecordSet({n: LayerRecord(n, tensor_balance_factor=f) for n, f in factors.items()}, Dialect.TORCH)
    final = TorchFramework().balance(graph, factors) if factors else graph
    on_writer(lambda: _write_modified(final, factors, modified_file))

    def conclude(calibration: Calibration) -> Outcome:
        records = assemble_records(TorchFramework(), graph, graph.layers, config, calibration.stations)
        if not trained:
            return Outcome(records, final)
        rounded = round_weights(final, trained, records, calibration.calls)
        on_writer(lambda: _write_modified(rounded, factors, modified_file))
        return Outcome(records, rounded)

    stations = [_station(watch, factors) for watch in plan_watches(graph.layers, config)]
    keep = None if trained else int(keep_first_batch)
    return _module(source.module, graph, stations, record_file, begun, config.batch_num, conclude, keep_batches=keep)


def module_for_balancing(source: TorchModel, config_file: StrPath, record: StrPath) -> CalibrationModule:
    """Return the module that measures balance factors; see `amct.quantize_preprocess`."""
    record_file = _absolute(record)
    _refuse_inputs(Path(config_file), (record_file,))
    graph, config = _load(source, config_file)
    stations = [Station(watch) for watch in plan_watches(graph.layers, config) if watch.migration_strength is not None]
    if not stations:
        raise ConfigError(
            f"{Path(config_file).name}: no layer has a dmq_balancer_param, so there is nothing to balance; add "
            "dmq_balancer to the configuration, or go on with quantize_model",
            path="$",
        )

    def conclude(calibration: Calibration) -> Outcome:
        records = {}
        for station in calibration.stations:
            (name,) = station.watch.layers
            assert station.balance is not None  # after the first pass
            records[name] = LayerRecord(name, tensor_balance_factor=station.balance)
        return Outcome(RecordSet(records, Dialect.TORCH), graph)

    empty = RecordSet({}, Dialect.TORCH)
    return _module(source.module, graph, stations, record_file, empty, config.batch_num, conclude, passes=1)


def _absolute(path: StrPath) -> Path:
    """Return an absolute path: the module may run in another working folder."""
    return Path(os.path.abspath(path))  # noqa: PTH100  Path.absolute keeps the ".."


def _load(source: TorchModel, config_file: StrPath) -> tuple[TorchGraph, QuantConfig]:
    """Return the exported model, fused as configured, and the configuration."""
    framework = TorchFramework()
    graph = framework.load(source)
    config = read_config(config_file, graph.layers)
    if config.do_fusion:
        graph, _ = framework.fuse(graph, config.skip_fusion_layers)
    return graph, config


def _module(
    module: torch.nn.Module,
    graph: TorchGraph,
    stations: Sequence[Station],
    record_file: Path,
    begun: RecordSet,
    batch_num: int,
    conclude: Any,
    **options: Any,
) -> CalibrationModule:
    """Return the calibrating module around a copy of the user's, which stays as it is."""
    assert graph.origin is not None  # modules have one
    inner = copy.deepcopy(unwrapped(module))
    own = replace(graph, origin=TorchOrigin(inner, graph.origin.layout))
    runner = inner
    if isinstance(module, torch.nn.DataParallel) and module.device_ids:
        runner = torch.nn.DataParallel(inner, module.device_ids, module.output_device, module.dim)

    def weight_maxima(layer: str) -> Float32Array:
        return input_channel_maxima(TorchFramework().weight(graph, layer), f"layer {layer!r}")

    calibration = Calibration(
        own, stations, record_file, begun, batch_num, weight_maxima=weight_maxima, conclude=conclude, **options
    )
    return CalibrationModule(runner, calibration)


def _station(watch: Watch, factors: dict[str, Float32Array]) -> Station:
    """Return a watch's station; balance factors that are known already are not measured again."""
    if watch.migration_strength is None:
        return Station(watch)
    (layer,) = watch.layers
    station = Station(replace(watch, migration_strength=None))
    station.balance = factors[layer]
    return station


def _balance_factors(config: QuantConfig, config_name: str, record_file: Path) -> dict[str, Float32Array]:
    """Return the factors that `quantize_preprocess` had measured for the layers that are to be balanced."""
    wanted = [
        name for name, layer in config.layers.items() if layer.quant_enable and layer.dmq_migration_strength is not None
    ]
    if not wanted:
        return {}
    known = {name: record.tensor_balance_factor for name, record in read_begun_records(record_file).records.items()}
    missing = [name for name in wanted if name not in known or not known[name].size]
    if missing:
        raise ConfigError(
            f"{config_name}: layer {missing[0]!r} is to be balanced (dmq_balancer_param), but {str(record_file)!r} has "
            "no tensor_balance_factor for it; call quantize_preprocess with this configuration and record file first, "
            "and run its model",
            path=f"$.{missing[0]}.dmq_balancer_param",
        )
    return {name: known[name] for name in wanted}


def _write_modified(graph: TorchGraph, factors: dict[str, Float32Array], path: Path) -> None:
    """Write the model that the record is for; balanced, it divides activations, so that its results are the float ones.

    Raises:
        OutputWriteError: the file cannot be written.
    """
    model = divide_activations(graph.model, factors) if factors else graph.model.graph
    try:
        with staging_folder(path.parent) as staging:
            # The name is in the names of external data files, which two modified models of a folder must not share.
            file, *others = write_model(model, staging, "", f"{path.stem}.modified")
            for other in others:
                other.replace(path.parent / other.name)
            file.replace(path)
    except OSError as error:
        raise OutputWriteError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error


def _refuse_inputs(config_file: Path, outputs: Collection[Path]) -> None:
    for path in outputs:
        if path.resolve() == config_file.resolve():
            raise OutputPathError(f"{str(path)!r} is the configuration and would be overwritten; choose another name")
