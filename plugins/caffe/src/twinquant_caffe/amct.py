"""The AMCT spelling of the interface: the vendor's names and argument order.

A script that imports the vendor's package needs one changed line::

    from twinquant_caffe import amct

What differs is in `docs/from_amct.md`.
"""

from __future__ import annotations

import importlib
import logging
import os
from collections.abc import Sequence
from typing import Any

from twinquant.api import save_model as _save_model
from twinquant.errors import ArgumentError

__all__ = [
    "accuracy_based_auto_calibration",
    "convert_model",
    "create_quant_config",
    "init",
    "quantize_model",
    "save_model",
    "set_cpu_mode",
    "set_gpu_mode",
]

StrPath = str | os.PathLike[str]

_logger = logging.getLogger(__name__)


def set_cpu_mode() -> None:
    """Let Caffe compute on the processor; without pycaffe nothing happens."""
    _set_mode("set_mode_cpu")


def set_gpu_mode() -> None:
    """Let Caffe compute on the graphics processor; without pycaffe nothing happens."""
    _set_mode("set_mode_gpu")


def _set_mode(function: str) -> None:
    try:
        caffe = importlib.import_module("caffe")
    except ImportError:
        _logger.info("pycaffe is not installed, so there is no mode to set; OpenCV computes on the processor")
        return
    getattr(caffe, function)()


def create_quant_config(
    config_file: StrPath,
    model_file: StrPath,
    weights_file: StrPath,
    skip_layers: Sequence[str] | None = None,
    batch_num: int = 1,
    activation_offset: bool = True,
    config_defination: StrPath | None = None,
) -> None:
    """Write a configuration that quantizes every layer that can be quantized.

    Args:
        config_file: the JSON file to write; its folder is made where it is missing.
        model_file: the float net's prototxt.
        weights_file: its caffemodel.
        skip_layers: layers that are not quantized; None: none.
        batch_num: how many batches calibration wants.
        activation_offset: whether activations have an offset.
        config_defination: a simplified configuration (.cfg), which counts more than the arguments; None: there is none.

    Raises:
        ConfigError: a setting or a layer is unknown, or no layer is left.
        ModelError: the net is missing or damaged.
        OutputError: the file cannot be written, or is an input.
    """
    from twinquant.config import write_new_config
    from twinquant_caffe.layers import describe_layers
    from twinquant_caffe.load import load_net

    write_new_config(
        describe_layers(load_net((model_file, weights_file))),
        config_file,
        skip_layers=skip_layers,
        batch_num=batch_num,
        activation_offset=activation_offset,
        definition=config_defination,
        inputs=(model_file, weights_file),
    )


def init(config_file: StrPath, model_file: StrPath, weights_file: StrPath, scale_offset_record_file: StrPath) -> Any:
    """Check the files of a calibration and return what the other functions call its graph.

    Args:
        config_file: the configuration, as `create_quant_config` writes it.
        model_file: the float net's prototxt.
        weights_file: its caffemodel.
        scale_offset_record_file: the record file that calibration will fill; nothing is written yet.

    Raises:
        ConfigError: the configuration is missing, wrong or of another net.
        ModelError: the net is missing, damaged or unsupported.
        OutputPathError: the record file is one of the inputs.
    """
    from twinquant_caffe.modified.quantize import open_graph

    return open_graph(config_file, model_file, weights_file, scale_offset_record_file)


def quantize_model(graph: Any, modified_model_file: StrPath, modified_weights_file: StrPath) -> None:
    """Write a net, fused as configured and with rounded weights, that calibrates when it runs, and begin its record.

    Its inputs are stored while it runs, in Caffe with Python layers or in OpenCV. With forward pass `batch_num` the
    calibration runs over them, and the record is complete. Further passes change nothing. The net and the record have
    to stay where they are until then. A net that an earlier call wrote for the same record is refused when it runs.

    Args:
        graph: what `init` returned.
        modified_model_file: the prototxt to write.
        modified_weights_file: the caffemodel to write.

    Raises:
        ArgumentError: `graph` is something else.
        ModelError: the net is missing or damaged, or a weight cannot be quantized.
        ConfigError: the configuration changed, and is wrong.
        OutputError: a file cannot be written, or is an input.
    """
    from twinquant_caffe.modified.quantize import make_calibrating_net

    make_calibrating_net(_checked(graph), modified_model_file, modified_weights_file)


def save_model(graph: Any, save_type: str, save_path: StrPath) -> None:
    """Write the fake-quant and the deploy net of a calibration, and `quant.json`.

    Args:
        graph: what `init` returned.
        save_type: "Both", "Fakequant" or "Deploy", in any case of letters.
        save_path: folder and prefix of the outputs, such as `./quantized_model/model`.

    Raises:
        ArgumentError: `graph` or `save_type` is something else.
        RecordError: the record lacks factors; the message names all layers that lack some, and says how many batches
            the modified net has seen.
        TwinQuantError: as `twinquant.save_model`.
    """
    from twinquant.saving import flavors_of
    from twinquant_caffe.modified.progress import finished_records

    checked = _checked(graph)
    flavors_of(save_type)
    records = finished_records(checked)
    net, _ = checked.load()
    _save_model(net, records, save_path, save_type=save_type, framework="caffe")


def convert_model(
    model_file: StrPath, weights_file: StrPath, scale_offset_record_file: StrPath, save_path: StrPath
) -> None:
    """Write the fake-quant and the deploy net of a float net whose factors are known.

    Args:
        model_file: the float net's prototxt.
        weights_file: its caffemodel.
        scale_offset_record_file: the record file; layers are fused unless their record says `skip_fusion`.
        save_path: folder and prefix of the outputs.

    Raises:
        TwinQuantError: as `twinquant.save_model`.
    """
    _save_model((model_file, weights_file), scale_offset_record_file, save_path, framework="caffe")


def accuracy_based_auto_calibration(
    model_file: StrPath,
    weights_file: StrPath,
    model_evaluator: Any,
    config_file: StrPath,
    record_file: StrPath,
    save_dir: StrPath,
    strategy: Any = "BinarySearch",
    sensitivity: Any = "CosineSimilarity",
) -> None:
    """Quantize a net with as few layers left in float as its accuracy needs, and write its twins.

    The net is calibrated once. Then nets with ever other layers in float are evaluated. Ctrl-C ends the search, and the
    best net so far is written. Beside the twins are `accuracy_based_auto_calibration_record.json` (every trial),
    `..._ranking_information.json` (the layers by sensitivity) and `..._final_config.json`.

    Args:
        model_file: the float net's prototxt.
        weights_file: its caffemodel.
        model_evaluator: an object with the methods `calibration(model_file, weights_file)`, which runs a modified net
            on at least `batch_num` batches, `evaluate(model_file, weights_file)`, which returns a net's accuracy, and
            `metric_eval(original_metric, new_metric)`, which returns whether that is good enough, and the loss.
        config_file: the configuration; layers that it switches off stay float in any case.
        record_file: the record to write: the factors of the layers that are quantized in the end.
        save_dir: folder and prefix of the outputs, such as `./results/model`.
        strategy: "BinarySearch", or an object with the vendor's two methods.
        sensitivity: "CosineSimilarity", or an object with the vendor's method `compare`.

    Raises:
        ArgumentError: the evaluator, the strategy or the sensitivity is not usable.
        CalibrationError: no set of layers holds the accuracy; the report is written all the same.
        TwinQuantError: as `quantize_model` and `save_model`.
    """
    from twinquant_caffe.modified.search import calibrate_for_accuracy

    calibrate_for_accuracy(
        model_file,
        weights_file,
        model_evaluator,
        config_file,
        record_file,
        save_dir,
        strategy=strategy,
        sensitivity=sensitivity,
    )


def _checked(graph: Any) -> Any:
    from twinquant_caffe.modified.quantize import CalibrationGraph

    if not isinstance(graph, CalibrationGraph):
        raise ArgumentError(
            f"graph: must be what init returned, got {type(graph).__name__}; call graph = init(config_file, "
            "model_file, weights_file, scale_offset_record_file) first. A net with a complete record is saved with "
            "convert_model"
        )
    return graph
