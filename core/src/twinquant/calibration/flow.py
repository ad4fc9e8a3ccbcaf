"""From a float model and data to records: the whole way, top to bottom."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from twinquant.calibration.assemble import begin_records, complete_records
from twinquant.calibration.batches import Batches
from twinquant.calibration.digests import digest_json
from twinquant.calibration.layer_weights import input_channel_maxima
from twinquant.calibration.manifest import FileDigest, Manifest, digest_model, make_manifest, package_versions
from twinquant.calibration.passes import Measurement, measure
from twinquant.calibration.progress import Progress
from twinquant.calibration.resume import Checkpoint
from twinquant.calibration.settings import ConfigLike, check_supported, resolve_config, trained_layers
from twinquant.calibration.shards import open_workers
from twinquant.calibration.station import Station
from twinquant.calibration.watches import plan_watches
from twinquant.config import QuantConfig
from twinquant.data import DataOptions, DataSource, open_data
from twinquant.errors import ArgumentError, CalibrationError, CapabilityError
from twinquant.plan import QuantPlan, build_plan
from twinquant.records import RecordSet
from twinquant.registry import Capability, Framework

__all__ = ["Calibrated", "Request", "run_calibration"]


_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Request:
    """What the user asked for.

    Attributes:
        model: the float model: a path or an object of its framework.
        data: what it is calibrated with.
        config: which layers and which algorithms.
        batch_num: how many batches; None: what the configuration says.
        options: how the data is cut and prepared.
        workers: how many processes, or what runs them.
        state_file: where the state is kept that a later run goes on from; None: nowhere.
        allow_constant: go on where every value of an activation is the same.
    """

    model: Any
    data: Any
    config: ConfigLike
    batch_num: int | None
    options: DataOptions
    workers: int | Executor
    state_file: Path | None
    allow_constant: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Calibrated:
    """What calibration found.

    Attributes:
        graph: the model that the records are for: fused and balanced.
        records: the factors.
        plan: what they mean for the graph.
        manifest: what all this depended on.
        inputs: the files that were read.
        changed: layers that differ from the user's: something was folded into them, or they were balanced or trained.
        checkpoint: the stored state, to be discarded when the results are safe.
    """

    graph: Any
    records: RecordSet
    plan: QuantPlan
    manifest: Manifest
    inputs: tuple[Path, ...]
    changed: tuple[str, ...]
    checkpoint: Checkpoint


def run_calibration(framework: Framework, request: Request, tell: Progress) -> Calibrated:
    """Calibrate.

    Raises:
        TwinQuantError: see `twinquant.calibrate`.
    """
    if Capability.CALIBRATE not in framework.capabilities:
        raise CapabilityError(f"the {framework.name} plugin cannot calibrate (in this version)")
    if isinstance(request.workers, int) and request.workers < 1:
        raise ArgumentError(f"workers: must be above 0, got {request.workers}")
    tell("loading the model", 0.0)
    loaded = framework.load(request.model)
    config = resolve_config(request.config, framework.layers(loaded), request.batch_num)
    check_supported(config, framework.name)
    trained = trained_layers(framework, config)
    graph, folded = framework.fuse(loaded, config.skip_fusion_layers) if config.do_fusion else (loaded, ())
    layers = framework.layers(graph)
    watches = plan_watches(layers, config)
    watched = {layer for watch in watches for layer in watch.layers}
    # Weights that cannot be quantized are told of before the data is gone through.
    begun = begin_records(framework, graph, [layer for layer in layers if layer.name in watched], config, {})
    model = digest_model(framework, request.model, loaded)

    def weight_maxima(layer: str) -> Any:
        return input_channel_maxima(framework.weight(graph, layer), f"layer {layer!r}")

    resumed = request.state_file is not None and request.state_file.exists()
    several = bool(trained) or request.workers != 1 or any(Station(watch).most_passes > 1 for watch in watches)
    inputs = framework.model_inputs(graph)
    with (
        open_data(
            request.data, inputs, request.options, batch_num=config.batch_num, repeated=several or resumed
        ) as source,
        open_workers(request.workers) as workers,
    ):
        if source.rest and source.count == config.batch_num:
            _log.warning("%s: %s; they are left out", source.name, source.rest)
        checkpoint = Checkpoint(request.state_file, _key(framework, model, config, source, request.options))
        measurement = Measurement(
            framework=framework,
            graph=graph,
            model=_paths(request.model),
            fuse=config.do_fusion,
            skip_fusion=config.skip_fusion_layers,
            watches=watches,
            source=source,
            batch_num=config.batch_num,
            weight_maxima=weight_maxima,
        )
        stations, batches = measure(measurement, checkpoint, workers, lambda what, done: tell(what, 0.9 * done))

        _tell_of_constants(stations, config.batch_num, allowed=request.allow_constant)
        tell("finding the scales of the weights", 0.9)
        balance = {station.watch.tap.layer: station.balance for station in stations if station.balance is not None}
        if balance:
            balanced = [layer for layer in layers if layer.name in balance]
            begun = replace(
                begun,
                records={**begun.records, **begin_records(framework, graph, balanced, config, balance).records},
            )
        records = complete_records(begun, stations)
        final = framework.balance(graph, balance) if balance else graph
        if trained:
            tell("training the rounding of the weights", 0.92)
            final = framework.round_weights(final, trained, records, Batches(source, config.batch_num))
    return Calibrated(
        graph=final,
        records=records,
        plan=build_plan(records, layers, framework.name),
        manifest=make_manifest(
            framework,
            model,
            folded,
            batches,
            config,
            request.options,
            passes=max((station.passes for station in stations), default=0),
            layers=len(records),
        ),
        inputs=(*framework.inputs(request.model, loaded), *_files(request.config), *_files(request.data)),
        changed=tuple(dict.fromkeys((*folded, *balance, *trained))),
        checkpoint=checkpoint,
    )


def _tell_of_constants(stations: Sequence[Station], batch_num: int, *, allowed: bool) -> None:
    """Tell of activations that have no range: an error, or a warning each.

    Raises:
        CalibrationError: there are such activations, and they are not allowed; all of them are named.
    """
    constant = [station for station in stations if station.constant is not None]
    if constant and not allowed:
        listed = "; ".join(f"{station.watch.label}: {station.constant:g}" for station in constant)
        raise CalibrationError(
            f"every value of an activation is the same, in all {batch_num} batches, which gives no range: {listed}. "
            "Check the data. Dead branches of a network have such activations: leave their layers out (skip_layers), "
            "or allow them (allow_constant=True, --allow-constant); their factors say little then"
        )
    for station in constant:
        _log.warning(
            "%s: every value of the activation is %g, in all %d batches; that gives no range, and the factors say "
            "little",
            station.watch.label,
            station.constant,
            batch_num,
        )


def _key(
    framework: Framework, model: tuple[FileDigest, ...], config: QuantConfig, source: DataSource, options: DataOptions
) -> str:
    """Return the fingerprint of everything that is known before the first batch and that the result depends on."""
    return digest_json(
        {
            "versions": package_versions(framework),
            "model": [asdict(file) for file in model],
            "config": asdict(config),
            "data": source.outline,
            "options": asdict(options),
        }
    )


def _files(source: Any) -> tuple[Path, ...]:
    """Return what the user named as a file."""
    if not isinstance(source, (str, os.PathLike)):
        return ()
    path = Path(source)
    return (path,) if path.is_file() else ()


def _paths(model: Any) -> str | tuple[str, ...] | None:
    """Return what another process can load the model from, or None."""
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    if isinstance(model, tuple) and all(isinstance(part, (str, os.PathLike)) for part in model):
        return tuple(os.fspath(part) for part in model)
    return None
