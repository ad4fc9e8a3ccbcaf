"""From a float model and data to records: the whole way, top to bottom."""

from __future__ import annotations

import logging
import os
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from twinquant.calibration.assemble import begin_records, complete_records
from twinquant.calibration.batches import Batches
from twinquant.calibration.check_ranges import check_ranges
from twinquant.calibration.digests import digest_json
from twinquant.calibration.factory import most_passes
from twinquant.calibration.layer_weights import input_channel_maxima
from twinquant.calibration.manifest import FileDigest, Manifest, digest_model, make_manifest, package_versions
from twinquant.calibration.passes import Measurement, measure
from twinquant.calibration.progress import Progress
from twinquant.calibration.resume import Checkpoint
from twinquant.calibration.settings import ConfigLike, check_supported, resolve_config, trained_layers
from twinquant.calibration.shards import check_workers, open_workers
from twinquant.calibration.watches import Watch, plan_watches
from twinquant.config import QuantConfig
from twinquant.data import DataOptions, DataSource, open_data
from twinquant.errors import CapabilityError, ConfigError
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
        folded: layers that differ from the user's because something was folded into them.
        balanced: layers whose weights were balanced.
        trained: layers whose weights were rounded by training.
        checkpoint: the stored state, to be discarded when the results are safe.
    """

    graph: Any
    records: RecordSet
    plan: QuantPlan
    manifest: Manifest
    inputs: tuple[Path, ...]
    folded: tuple[str, ...]
    balanced: tuple[str, ...]
    trained: tuple[str, ...]
    checkpoint: Checkpoint


def run_calibration(framework: Framework, request: Request, tell: Progress) -> Calibrated:
    """Calibrate.

    Raises:
        TwinQuantError: see `twinquant.calibrate`.
    """
    if Capability.CALIBRATE not in framework.capabilities:
        raise CapabilityError(f"the {framework.name} plugin cannot calibrate (in this version)")
    request = replace(request, workers=check_workers(request.workers))
    tell("loading the model", 0.0)
    loaded = framework.load(request.model)
    config = resolve_config(request.config, framework.layers(loaded), request.batch_num)
    check_supported(config, framework.name)
    trained = trained_layers(framework, config)
    graph, folded = framework.fuse(loaded, config.skip_fusion_layers) if config.do_fusion else (loaded, ())
    layers = framework.layers(graph)
    watches = plan_watches(layers, config)
    if not watches:
        raise ConfigError(
            "no layer is left to quantize: what the configuration enables cannot be quantized once normalizations are "
            "folded into it; enable other layers, or switch that off (do_fusion)",
            path="$",
        )
    watched = {layer for watch in watches for layer in watch.layers}
    # Weights that cannot be quantized are told of before the data is gone through.
    begun = begin_records(framework, graph, [layer for layer in layers if layer.name in watched], config, {})
    model = digest_model(framework, request.model, loaded)

    def weight_maxima(layer: str) -> Any:
        return input_channel_maxima(framework.weight(graph, layer), f"layer {layer!r}")

    resumed = request.state_file is not None and request.state_file.exists()
    several = bool(trained) or request.workers != 1 or any(map(_may_need_passes, watches))
    inputs = framework.model_inputs(graph)
    with (
        open_data(
            framework.prepare_data(graph, request.data),
            inputs,
            request.options,
            batch_num=config.batch_num,
            repeated=several or resumed,
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

        check_ranges(
            stations,
            config.batch_num,
            allow_constant=request.allow_constant,
            way_out="leave their layers out (skip_layers), or allow them (allow_constant=True, --allow-constant); "
            "their factors say little then",
        )
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
        folded=tuple(folded),
        balanced=tuple(balance),
        trained=tuple(trained),
        checkpoint=checkpoint,
    )


def _may_need_passes(watch: Watch) -> bool:
    """Tell whether a watch may need more than one pass."""
    return watch.migration_strength is not None or most_passes(watch.options) > 1


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
