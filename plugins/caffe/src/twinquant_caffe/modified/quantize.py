"""Making the net that calibrates when it runs: `init` and `quantize_model`."""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from twinquant.calibration.assemble import begin_records
from twinquant.calibration.digests import digest_file
from twinquant.calibration.settings import check_supported, trained_layers
from twinquant.calibration.watches import plan_watches
from twinquant.config import QuantConfig, read_config
from twinquant.errors import ArgumentError, OutputPathError, UnsupportedModelError
from twinquant.records import write_unfinished_record
from twinquant_caffe.framework import CaffeFramework
from twinquant_caffe.fuse import fuse_net
from twinquant_caffe.layers import describe_layers
from twinquant_caffe.load import load_net
from twinquant_caffe.modified.edit import modify_net
from twinquant_caffe.modified.inputs import fed_blobs
from twinquant_caffe.modified.job import CalibrationJob, job_folder
from twinquant_caffe.modified.placing import all_or_none, put, staging_beside
from twinquant_caffe.net import CaffeNet
from twinquant_caffe.write import write_net

__all__ = ["CalibrationGraph", "absolute", "make_calibrating_net", "open_graph"]

StrPath = str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class CalibrationGraph:
    """What `amct.init` returns: the files of one calibration. Everything else is read from them.

    Attributes:
        config: the configuration, as JSON.
        model: the float net's prototxt.
        weights: its caffemodel.
        record: the record file that calibration fills.
    """

    config: Path
    model: Path
    weights: Path
    record: Path

    def load(self) -> tuple[CaffeNet, QuantConfig]:
        """Return the float net, fused as configured, which is what the record is about, and the configuration.

        Raises:
            ModelError: the net is missing, damaged or unsupported.
            ConfigError: the configuration is missing, wrong or of another net.
        """
        net = load_net((self.model, self.weights))
        config = read_config(self.config, describe_layers(net))
        check_supported(config, CaffeFramework.name)
        trained_layers(CaffeFramework(), config)  # refuses them
        fused = fuse_net(net, config.skip_fusion_layers)[0] if config.do_fusion else net
        return replace(fused, prepared=True), config


def absolute(path: StrPath) -> Path:
    """Return a path that means the same in any working folder."""
    return Path(os.path.abspath(path))  # noqa: PTH100  Path.absolute keeps the ".."


def open_graph(config: StrPath, model: StrPath, weights: StrPath, record: StrPath) -> CalibrationGraph:
    """Check the files of a calibration; see `amct.init`."""
    graph = CalibrationGraph(absolute(config), absolute(model), absolute(weights), absolute(record))
    _refuse_inputs((graph.config, graph.model, graph.weights), (graph.record,))
    graph.load()
    return graph


def make_calibrating_net(
    graph: CalibrationGraph, model: StrPath, weights: StrPath, *, keep_batches: bool = False
) -> CalibrationJob:
    """Write the modified net and begin the record; see `amct.quantize_model`. What an earlier one saw is dropped.

    All of that happens, or nothing: an earlier modified net, its record and its batches stay usable.

    Args:
        graph: the calibration.
        model: the prototxt to write.
        weights: the caffemodel to write.
        keep_batches: whether the stored batches stay when the record is complete.
    """
    model_file, weights_file = absolute(model), absolute(weights)
    if model_file == weights_file:
        raise ArgumentError(f"the prototxt and the caffemodel cannot both be {str(model_file)!r}; give them two names")
    _refuse_inputs((graph.config, graph.model, graph.weights, graph.record), (model_file, weights_file))
    _refuse_folders((model_file, weights_file, graph.record))
    net, config = graph.load()
    layers = describe_layers(net)
    watches = plan_watches(layers, config)
    watched = {layer for watch in watches for layer in watch.layers}
    begun = begin_records(CaffeFramework(), net, [layer for layer in layers if layer.name in watched], config, {})
    inputs = fed_blobs(net, [watch.tap.layer for watch in watches])
    if watches and not inputs:
        raise UnsupportedModelError("no quantized layer depends on an input, so there is nothing to calibrate with")
    seen, key = job_folder(graph.record), secrets.token_hex(16)
    modified = modify_net(net, begun, inputs, folder=seen, key=key)
    with staging_beside((model_file, weights_file, graph.record)) as staging, all_or_none() as undo:
        model_staging, staged_record = staging[model_file], Path(tempfile.mkdtemp(dir=staging[graph.record]))
        written = write_net(modified, staging[weights_file], model_file.name, weights_file.name)
        staged_model = Path(shutil.move(written[0], tempfile.mkdtemp(dir=model_staging)))
        progress = f"{config.batch_num} batches have to be seen by {str(model_file)!r}"
        write_unfinished_record(begun, staged_record / graph.record.name, progress)
        (staged_record / seen.name).mkdir()
        job = CalibrationJob(
            key,
            str(graph.record),
            str(model_file),
            str(weights_file),
            digest_file(written[1]),
            config.batch_num,
            inputs,
            watches,
            keep_batches,
        )
        job.write(staged_record / seen.name)
        # The net comes last: whoever finds it finds the rest in place.
        put(staged_record / seen.name, seen, undo)
        put(staged_record / graph.record.name, graph.record, undo)
        put(written[1], weights_file, undo)
        put(staged_model, model_file, undo)
    return job


def _refuse_folders(files: tuple[Path, ...]) -> None:
    for path in files:
        if path.is_dir():
            raise OutputPathError(f"{str(path)!r} is a folder; give the path of the file to write")


def _refuse_inputs(inputs: tuple[Path, ...], outputs: tuple[Path, ...]) -> None:
    taken = {path.resolve() for path in inputs}
    for path in outputs:
        if path.resolve() in taken:
            raise OutputPathError(
                f"{str(path)!r} is an input of this call and would be overwritten; choose another name"
            )
