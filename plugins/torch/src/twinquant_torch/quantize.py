"""Making the modules that calibrate when they run: `quantize_model` and `quantize_preprocess`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from twinquant.calibration.assemble import assemble_records
from twinquant.calibration.check_ranges import check_ranges
from twinquant.calibration.layer_weights import input_channel_maxima
from twinquant.calibration.recorded_balance import recorded_balance
from twinquant.calibration.settings import trained_layers
from twinquant.calibration.station import Station
from twinquant.calibration.watches import Watch, plan_watches
from twinquant.config import QuantConfig, read_config
from twinquant.errors import ConfigError, OutputWriteError
from twinquant.outputs import staging_folder
from twinquant.records import Dialect, LayerRecord, RecordSet
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.load import load_model
from twinquant_onnx.modified.balancing import divide_activations
from twinquant_onnx.write import write_model
from twinquant_torch.calibration import Calibration, CalibrationModule, Outcome
from twinquant_torch.distributed import on_writer, together
from twinquant_torch.equality import check_equal
from twinquant_torch.folders import StrPath, check_outputs, make_folder
from twinquant_torch.framework import TorchFramework
from twinquant_torch.graph import TorchGraph
from twinquant_torch.load import load_module
from twinquant_torch.reporting import warn_of_left_out
from twinquant_torch.rounding import check_trainable, round_weights
from twinquant_torch.source import TorchModel

__all__ = ["calibrating_module", "module_for_balancing"]

Float32Array = npt.NDArray[np.float32]


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
    with together():
        modified_file, record_file = check_outputs(config_file, {"modified model": modified, "record": record})
        graph, config = _load(source, config_file)
        assert graph.origin is not None  # it was a module
        warn_of_left_out(graph.layers)
        trained = trained_layers(TorchFramework(), config)
        check_trainable(graph, trained)
        factors = recorded_balance(
            config,
            graph.layers,
            record_file,
            framework=TorchFramework.name,
            config_name=Path(config_file).name,
        )
        begun = RecordSet({n: LayerRecord(n, tensor_balance_factor=f) for n, f in factors.items()}, Dialect.TORCH)
        final = TorchFramework().balance(graph, factors) if factors else graph
        feeds, expected = graph.origin.layout.example_feeds(), graph.origin.expected
        on_writer(
            lambda: _write_modified(final, factors, modified_file, lambda g: check_equal(g, feeds, expected, _WHAT))
        )

    def conclude(calibration: Calibration) -> Outcome:
        check_ranges(
            calibration.stations,
            config.batch_num,
            way_out="leave their layers out (skip_layers of create_quant_config)",
        )
        records = assemble_records(TorchFramework(), graph, graph.layers, config, calibration.stations)
        if not trained:
            return Outcome(records, final)
        rounded = round_weights(final, trained, records, calibration.calls)
        on_writer(lambda: _write_modified(rounded, factors, modified_file))
        return Outcome(records, rounded)

    stations = [_station(watch, factors) for watch in plan_watches(graph.layers, config)]
    keep = None if trained else int(keep_first_batch)
    with together():
        return _module(
            source.module, graph, stations, record_file, begun, config.batch_num, conclude, keep_batches=keep
        )


def module_for_balancing(source: TorchModel, config_file: StrPath, record: StrPath) -> CalibrationModule:
    """Return the module that measures balance factors; see `amct.quantize_preprocess`."""
    with together():
        (record_file,) = check_outputs(config_file, {"record": record})
        graph, config = _load(source, config_file)
        watches = [watch for watch in plan_watches(graph.layers, config) if watch.migration_strength is not None]
        if not watches:
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
        return Outcome(RecordSet(records, Dialect.TORCH), None)

    empty = RecordSet({}, Dialect.TORCH)
    stations = [Station(watch) for watch in watches]
    with together():
        return _module(source.module, graph, stations, record_file, empty, config.batch_num, conclude, passes=1)


def _load(source: TorchModel, config_file: StrPath) -> tuple[TorchGraph, QuantConfig]:
    """Return the exported model, fused as configured, and the configuration."""
    framework = TorchFramework()
    graph = load_module(source)
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
    """Return the calibrating module around the graph's copy of the user's, which stays as it is."""
    assert graph.origin is not None  # it was a module
    inner = runner = graph.origin.module
    if isinstance(module, torch.nn.DataParallel) and module.device_ids:
        runner = torch.nn.DataParallel(inner, module.device_ids, module.output_device, module.dim)

    def weight_maxima(layer: str) -> Float32Array:
        return input_channel_maxima(TorchFramework().weight(graph, layer), f"layer {layer!r}")

    calibration = Calibration(
        graph, stations, record_file, begun, batch_num, weight_maxima=weight_maxima, conclude=conclude, **options
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


def _write_modified(
    graph: TorchGraph,
    factors: dict[str, Float32Array],
    path: Path,
    check: Callable[[OnnxGraph], None] | None = None,
) -> None:
    """Write the model that the record is for; balanced, it divides activations, so that its results are the float ones.

    Args:
        graph: the model.
        factors: its balance factors.
        path: the file.
        check: is shown what was written, before it takes the place of an older file.

    Raises:
        OutputPathError: its folder cannot be made.
        OutputWriteError: the file cannot be written.
    """
    model = divide_activations(graph.model, factors) if factors else graph.model.graph
    make_folder(path)
    try:
        with staging_folder(path.parent) as staging:
            # The name is in the names of external data files, which two modified models of a folder must not share.
            file, *others = write_model(model, staging, "", f"{path.stem}.modified")
            if check is not None:
                check(load_model(file))
            for other in others:
                other.replace(path.parent / other.name)
            file.replace(path)
    except OSError as error:
        raise OutputWriteError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error


_WHAT = "the modified model"
