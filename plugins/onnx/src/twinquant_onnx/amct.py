"""The AMCT spelling of the interface: the vendor's names and argument order.

A script that imports the vendor's package needs one changed line::

    from twinquant_onnx import amct

What differs is in `docs/from_amct.md`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from twinquant.api import save_model as _save_model
from twinquant.calibration.evaluation import ModelEvaluator
from twinquant.errors import ArgumentError

if TYPE_CHECKING:
    import onnxruntime

    AMCT_SO: onnxruntime.SessionOptions

__all__ = [
    "AMCT_SO",
    "AutoCalibrationEvaluatorBase",
    "ModelEvaluator",
    "accuracy_based_auto_calibration",
    "create_quant_config",
    "quantize_model",
    "quantize_preprocess",
    "save_model",
]

StrPath = str | os.PathLike[str]

AutoCalibrationEvaluatorBase = ModelEvaluator
"""The vendor's name of the evaluator's base class."""


def __getattr__(name: str) -> Any:
    """Make AMCT_SO when it is asked for: whoever only saves models needs no operators."""
    if name == "AMCT_SO":
        return _session_options()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def _session_options() -> onnxruntime.SessionOptions:
    from twinquant_onnx.modified.session import make_session_options

    return make_session_options()


def create_quant_config(
    config_file: StrPath,
    model_file: StrPath,
    skip_layers: Sequence[str] | None = None,
    batch_num: int = 1,
    activation_offset: bool = True,
    config_defination: StrPath | None = None,
) -> None:
    """Write a configuration that quantizes every layer that can be quantized.

    Args:
        config_file: the JSON file to write; its folder is made where it is missing.
        model_file: the float model.
        skip_layers: layers that are not quantized; None: none.
        batch_num: how many batches calibration wants.
        activation_offset: whether activations have an offset.
        config_defination: a simplified configuration (.cfg), which counts more than the arguments; None: there is none.

    Raises:
        ConfigError: a setting or a layer is unknown, or no layer is left.
        ModelError: the model is missing or damaged.
        OutputError: the file cannot be written, or is an input.
    """
    from twinquant.config import write_new_config
    from twinquant_onnx.framework import OnnxFramework

    model = OnnxFramework().load(model_file)
    write_new_config(
        model.layers,
        config_file,
        skip_layers=skip_layers,
        batch_num=batch_num,
        activation_offset=activation_offset,
        definition=config_defination,
        inputs=model.graph.inputs,
    )


def quantize_preprocess(
    config_file: StrPath, record_file: StrPath, model_file: StrPath, modified_onnx_file: StrPath
) -> None:
    """Write a model that measures balance factors (DMQ) when it runs.

    After `batch_num` batches in a session with AMCT_SO the record holds a `tensor_balance_factor` for every layer that
    has a `dmq_balancer_param`. Call `quantize_model` with the same configuration and record then.

    Args:
        config_file: the configuration.
        record_file: the record to begin; emptied.
        model_file: the float model.
        modified_onnx_file: the model to write.

    Raises:
        ConfigError: the configuration is missing, wrong, of another model, or balances no layer.
        ModelError: the model is missing, damaged or unsupported.
        OutputError: a file cannot be written, or is an input.
    """
    from twinquant_onnx.modified.quantize import Habit, make_balancing_model

    make_balancing_model(
        Habit.of(config=config_file, model=model_file, modified=modified_onnx_file, record=record_file)
    )


def quantize_model(
    config_file: StrPath,
    model_file: StrPath,
    modified_onnx_file: StrPath,
    record_file: StrPath,
    *,
    weights_balanced: bool = False,
) -> None:
    """Write a model, fused and balanced as configured, that calibrates when it runs, and begin its record.

    The weights of layers that are quantized are rounded to multiples of their scales, so its activations are nearly
    those of the float model. After `batch_num` batches in a session with AMCT_SO the record is complete.

    Args:
        config_file: the configuration.
        model_file: the float model.
        modified_onnx_file: the model to write.
        record_file: the record to begin: it keeps the balance factors of `quantize_preprocess` and nothing else.
        weights_balanced: the weights of the model are multiplied by these factors already, as in the vendor's modified
            models; no argument of the vendor's. For a model that this function wrote it makes no difference.

    Raises:
        ConfigError: the configuration is missing, wrong or of another model, or balance factors have to be measured
            first.
        ModelError: the model is missing, damaged or unsupported.
        OutputError: a file cannot be written, or is an input.
    """
    from twinquant_onnx.modified.quantize import Habit, make_calibrating_model

    make_calibrating_model(
        Habit.of(config=config_file, model=model_file, modified=modified_onnx_file, record=record_file),
        weights_balanced=weights_balanced,
    )


def save_model(
    modfied_onnx_file: StrPath | None = None,
    record_file: StrPath | None = None,
    save_path: StrPath | None = None,
    *,
    modified_onnx_file: StrPath | None = None,
) -> None:
    """Write the fake-quant and the deploy model of a calibrated ONNX model.

    Args:
        modfied_onnx_file: the model; the vendor's spelling.
        record_file: the record file that calibration filled.
        save_path: folder and prefix of the outputs, such as `./results/model`.
        modified_onnx_file: the same as `modfied_onnx_file`, spelled right.

    Raises:
        ArgumentError: an argument is missing, or the model is given twice.
        RecordFileError: calibration has not finished; the message says how many batches the modified model has seen.
        TwinQuantError: as `twinquant.save_model`.
    """
    from twinquant_onnx.modified.progress import check_finished

    if modfied_onnx_file is not None and modified_onnx_file is not None:
        raise ArgumentError(
            "the model is given twice, as modfied_onnx_file and as modified_onnx_file; give it once, in either spelling"
        )
    model = modfied_onnx_file if modfied_onnx_file is not None else modified_onnx_file
    given = {"modfied_onnx_file": model, "record_file": record_file, "save_path": save_path}
    missing = [name for name, value in given.items() if value is None]
    if model is None or record_file is None or save_path is None:
        raise ArgumentError(
            f"missing {', '.join(missing)}; call save_model(modfied_onnx_file, record_file, save_path), for example "
            "save_model('modified.onnx', 'record.txt', './results/model')"
        )
    check_finished(model, record_file)
    _save_model(model, record_file, save_path, framework="onnx")


def accuracy_based_auto_calibration(
    model_file: StrPath,
    model_evaluator: ModelEvaluator,
    config_file: StrPath,
    record_file: StrPath,
    save_dir: StrPath,
    strategy: Any = "BinarySearch",
    sensitivity: Any = "CosineSimilarity",
) -> None:
    """Quantize a model with as few layers left in float as its accuracy needs, and write its twins.

    The model is calibrated once. Then models with ever other layers in float are evaluated. Ctrl-C ends the search, and
    the best model so far is written. Beside the twins are `accuracy_based_auto_calibration_record.json` (every trial),
    `..._ranking_information.json` (the layers by sensitivity) and `..._final_config.json`.

    Args:
        model_file: the float model.
        model_evaluator: calibrates and evaluates models.
        config_file: the configuration; layers that it switches off stay float in any case.
        record_file: the record to write: the factors of the layers that are quantized in the end; empty if the accuracy
            cannot be held.
        save_dir: folder and prefix of the outputs, such as `./results/model`.
        strategy: "BinarySearch", or an object with the vendor's two methods.
        sensitivity: "CosineSimilarity", or an object with the vendor's method `compare`.

    Raises:
        ArgumentError: the evaluator, the strategy or the sensitivity is not usable.
        CalibrationError: no set of layers holds the accuracy; the report is written all the same. Or the evaluator's
            `calibration` ran too few batches, or they give no factors.
        TwinQuantError: as `quantize_model` and `save_model`.
    """
    from twinquant_onnx.modified.search import calibrate_for_accuracy

    calibrate_for_accuracy(
        model_file,
        model_evaluator,
        config_file,
        record_file,
        save_dir,
        strategy=strategy,
        sensitivity=sensitivity,
    )
