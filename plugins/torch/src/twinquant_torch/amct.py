"""The AMCT spelling of the interface: the vendor's names and argument order.

A script that imports the vendor's package needs one changed line::

    import twinquant_torch.amct as amct

What differs is in `docs/torch.md`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from twinquant.calibration.evaluation import ModelEvaluator
from twinquant.config import write_new_config
from twinquant.errors import ArgumentError
from twinquant_onnx.amct import save_model
from twinquant_torch.source import TorchModel

if TYPE_CHECKING:
    import torch

__all__ = [
    "AutoCalibrationEvaluatorBase",
    "ModelEvaluator",
    "accuracy_based_auto_calibration",
    "create_quant_config",
    "quantize_model",
    "quantize_preprocess",
    "save_model",
]

StrPath = str | os.PathLike[str]
DynamicAxes = Mapping[str, Mapping[int, str] | Sequence[int]]

AutoCalibrationEvaluatorBase = ModelEvaluator
"""The vendor's name of the evaluator's base class."""


def create_quant_config(
    config_file: StrPath,
    model: torch.nn.Module,
    input_data: Any,
    skip_layers: Sequence[str] | None = None,
    batch_num: int = 1,
    activation_offset: bool = True,
    config_defination: StrPath | None = None,
) -> None:
    """Write a configuration that quantizes every layer that can be quantized; a warning names each of the others.

    Args:
        config_file: the JSON file to write; its folder is made where it is missing.
        model: the float model, in evaluation mode.
        input_data: one batch as `forward` takes it: a tensor, a tuple of arguments, or a dict of keyword arguments.
        skip_layers: layers that are not quantized, by the paths of their modules; None: none. Those that cannot be
            quantized may be among them.
        batch_num: how many batches calibration wants.
        activation_offset: whether activations have an offset.
        config_defination: a simplified configuration (.cfg), which counts more than the arguments; None: there is none.

    Raises:
        ConfigError: a setting or a layer is unknown, or no layer is left; the reasons of the layers are in the message.
        ModelError: the model is in training mode or cannot be exported.
        DataError: the input data is on another device.
        OutputError: the file cannot be written.
    """
    from twinquant_torch.load import load_module
    from twinquant_torch.reporting import left_out, warn_of_left_out

    layers = load_module(TorchModel(model, input_data)).layers
    refused = left_out(layers)
    warn_of_left_out(layers)
    if skip_layers is not None and not isinstance(skip_layers, str):
        # They are not quantized anyway.
        skip_layers = [name for name in skip_layers if name not in refused]
    write_new_config(
        layers,
        config_file,
        skip_layers=skip_layers,
        batch_num=batch_num,
        activation_offset=activation_offset,
        definition=config_defination,
    )


def quantize_preprocess(
    config_file: StrPath, record_file: StrPath, model: torch.nn.Module, input_data: Any
) -> torch.nn.Module:
    """Return a module that measures balance factors (DMQ) when it runs.

    After `batch_num` batches the record holds a `tensor_balance_factor` for every layer that has a
    `dmq_balancer_param`. Call `quantize_model` with the same configuration and record then.

    Args:
        config_file: the configuration.
        record_file: the record to begin.
        model: the float model; not modified.
        input_data: as for `create_quant_config`.

    Raises:
        ConfigError: the configuration is missing, wrong, of another model, or balances no layer.
        ModelError: the model is in training mode or cannot be exported.
        OutputError: the record cannot be written.
    """
    from twinquant_torch.quantize import module_for_balancing

    return module_for_balancing(TorchModel(model, input_data), config_file, record_file)


def quantize_model(
    config_file: StrPath | None = None,
    modfied_onnx_file: StrPath | None = None,
    record_file: StrPath | None = None,
    model: torch.nn.Module | None = None,
    input_data: Any = None,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_axes: DynamicAxes | None = None,
    *,
    modified_onnx_file: StrPath | None = None,
) -> torch.nn.Module:
    """Return a module that calibrates when it runs, write the exported model, and begin the record.

    The module computes what the model does. After `batch_num` batches the record is complete. The exported model is
    fused and balanced as configured, computes the same, and its nodes have the names that the record uses.

    Args:
        config_file: the configuration.
        modfied_onnx_file: the ONNX file to write; the vendor's spelling.
        record_file: the record to begin: it keeps the balance factors of `quantize_preprocess` and nothing else.
        model: the float model; not modified. Of a DataParallel or DistributedDataParallel model, what is inside counts.
        input_data: as for `create_quant_config`.
        input_names: names of the exported inputs; None: those that `forward` uses.
        output_names: names of the exported outputs; None: the exporter's.
        dynamic_axes: which axes have any length, by the name of an input or output, such as `{"input": {0: "n"}}`.
        modified_onnx_file: the same as `modfied_onnx_file`, spelled right.

    Raises:
        ArgumentError: an argument is missing, or the file is given twice.
        ConfigError: the configuration is missing, wrong or of another model, or balance factors have to be measured
            first.
        ModelError: the model is in training mode or cannot be exported.
        DataError: the input data is on another device.
        OutputError: a file cannot be written, or is an input.
    """
    from twinquant_torch.quantize import calibrating_module

    if modfied_onnx_file is not None and modified_onnx_file is not None:
        raise ArgumentError(
            "the file is given twice, as modfied_onnx_file and as modified_onnx_file; give it once, in either spelling"
        )
    file = modfied_onnx_file if modfied_onnx_file is not None else modified_onnx_file
    given = {
        "config_file": config_file,
        "modfied_onnx_file": file,
        "record_file": record_file,
        "model": model,
        "input_data": input_data,
    }
    missing = [name for name, value in given.items() if value is None]
    if config_file is None or file is None or record_file is None or missing:
        raise ArgumentError(
            f"missing {', '.join(missing)}; call quantize_model(config_file, modfied_onnx_file, record_file, model, "
            "input_data), for example quantize_model('config.json', 'modified.onnx', 'record.txt', model, batch)"
        )
    source = TorchModel(model, input_data, input_names, output_names, dynamic_axes)
    return calibrating_module(source, config_file, file, record_file)


def accuracy_based_auto_calibration(
    model: torch.nn.Module,
    model_evaluator: ModelEvaluator,
    config_file: StrPath,
    record_file: StrPath,
    save_dir: StrPath,
    input_data: Any,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
    dynamic_axes: DynamicAxes | None = None,
    strategy: Any = "BinarySearch",
    sensitivity: Any = "CosineSimilarity",
) -> None:
    """Quantize a model with as few layers left in float as its accuracy needs, and write its twins.

    The model is calibrated once. Then models with ever other layers in float are evaluated. Ctrl-C ends the search, and
    the best model so far is written. Beside the twins are `accuracy_based_auto_calibration_record.json` (every trial),
    `..._ranking_information.json` (the layers by sensitivity) and `..._final_config.json`.

    Args:
        model: the float model; not modified.
        model_evaluator: its `calibration` and `evaluate` are given modules: the calibrating one, the float model, and
            fake-quant twins, which run in ONNX Runtime.
        config_file: the configuration; layers that it switches off stay float in any case.
        record_file: the record to write: the factors of the layers that are quantized in the end.
        save_dir: folder and prefix of the outputs, such as `./results/model`.
        input_data: as for `create_quant_config`.
        input_names: as for `quantize_model`.
        output_names: as for `quantize_model`.
        dynamic_axes: as for `quantize_model`; where the evaluator uses batches of another size, name the batch axis.
        strategy: "BinarySearch", or an object with the vendor's two methods.
        sensitivity: "CosineSimilarity", or an object with the vendor's method `compare`.

    Raises:
        ArgumentError: the evaluator, the strategy or the sensitivity is not usable.
        CalibrationError: no set of layers holds the accuracy; the report is written all the same.
        TwinQuantError: as `quantize_model` and `save_model`.
    """
    from twinquant_torch.search import calibrate_for_accuracy

    calibrate_for_accuracy(
        TorchModel(model, input_data, input_names, output_names, dynamic_axes),
        model_evaluator,
        config_file,
        record_file,
        save_dir,
        strategy=strategy,
        sensitivity=sensitivity,
    )
