"""From a float model and data to a record, and to verified twins."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twinquant.calibration.flow import Calibrated, Request, run_calibration
from twinquant.calibration.manifest import Manifest
from twinquant.calibration.settings import ConfigLike
from twinquant.data import DataOptions
from twinquant.errors import OutputPathError, OutputWriteError
from twinquant.outputs import DualOutput, parse_save_path
from twinquant.outputs.ownership import check_not_inputs
from twinquant.plan.rules import FRAMEWORK_RULES, FrameworkRules
from twinquant.records import RecordSet, format_records, write_record_file
from twinquant.registry import Framework, notify_saved, select_framework
from twinquant.saving import flavors_of, write_twins

__all__ = ["QuantizeResult", "calibrate", "quantize"]

_log = logging.getLogger(__name__)

_STATE_ENDING = ".unfinished"


@dataclass(frozen=True, slots=True, eq=False)
class QuantizeResult:
    """What `quantize` made.

    Attributes:
        output: the twins' files, and the plan; the record and the manifest are among the sidecars.
        records: the factors.
        manifest: what they depended on.
    """

    output: DualOutput
    records: RecordSet
    manifest: Manifest


def calibrate(
    model: Any,
    data: Any,
    record_file: str | os.PathLike[str],
    *,
    config: ConfigLike = None,
    batch_num: int | None = None,
    options: DataOptions | None = None,
    prepared_model: str | os.PathLike[str] | None = None,
    framework: str | None = None,
    workers: int | Executor = 1,
    resume: bool = True,
    allow_constant: bool = False,
    progress: Callable[[str, float], None] | None = None,
    **framework_options: Any,
) -> RecordSet:
    """Find the factors of a model and write them to a record file, which is replaced when they are complete.

    Where the configuration lets it, BatchNormalization is folded into the layers before it, and balance factors are
    multiplied into weights. The record is then for the model with these changes: write it with `prepared_model`.

    Args:
        model: the float model: a path, or an object of its framework.
        data: a folder of images, or of .npy or .npz files; an .npz file (arrays by input name) or an .npy file; an
            array, or a dict of arrays by input name; any iterable of batches (arrays or such dicts); a data loader.
        record_file: the record file; its folder is made if it is missing.
        config: a JSON or .cfg file, a dict of overrides such as `{"activation_algorithm": "hfmg", "asymmetric":
            False}`, or a `QuantConfig`; None means the defaults.
        batch_num: how many batches are used; None: what the configuration says, or 32.
        options: how the data is cut into batches and how images are prepared.
        prepared_model: where to write the model that the record is for.
        framework: name of the framework; None means the one that claims the model most strongly.
        workers: how many processes run batches; or a `concurrent.futures.Executor` that runs them, such as that of a
            Dask client. The result is the same, bit for bit.
        resume: keep the state in a file beside the record, `<record_file>.unfinished`, and go on from there if an
            earlier run of the same calibration was cut off.
        allow_constant: go on, with a warning, where every value of an activation is the same: such a layer has no
            range, and its factors say little.
        progress: called with what happens next and the fraction that is done, 0 to 1.
        **framework_options: settings that only the model's framework knows; its documentation lists them.

    Returns:
        The records.

    Raises:
        ArgumentError: an argument is out of range.
        PluginError: no plugin, or more than one, can handle the model, or the plugin cannot calibrate.
        ConfigError: the configuration is wrong or does not fit the model.
        DataError: the data is missing, broken, too short, or does not fit the model.
        CalibrationError: activations are NaN, infinite or all the same, or give no factors.
        ModelError: the model is damaged or unsupported, or a weight cannot be quantized.
        OutputError: the record cannot be written there.
    """
    tell = progress or (lambda _step, _fraction: None)
    path = Path(record_file)
    outputs = [path] if prepared_model is None else [path, Path(prepared_model)]
    if len({output.resolve() for output in outputs}) < len(outputs):
        raise OutputPathError(f"record_file and prepared_model are both {str(path)!r}; give them different names")
    _check_outputs(outputs, (model, data, config))
    chosen = select_framework(model, framework).with_options(framework_options)
    state_file = path.with_name(path.name + _STATE_ENDING) if resume else None
    request = Request(model, data, config, batch_num, options or DataOptions(), workers, state_file, allow_constant)
    calibrated = run_calibration(chosen, request, tell)
    _check_outputs(outputs, calibrated.inputs)
    if prepared_model is not None:
        _write_prepared(chosen, calibrated, Path(prepared_model))
    elif not FRAMEWORK_RULES.get(chosen.name, FrameworkRules()).fused_when_saved:
        _tell_of_changes(calibrated, path)
    _make_folder(path)
    write_record_file(calibrated.records, path)
    calibrated.checkpoint.discard()
    tell("done", 1.0)
    return calibrated.records


def quantize(
    model: Any,
    data: Any,
    save_path: str | os.PathLike[str],
    *,
    config: ConfigLike = None,
    batch_num: int | None = None,
    save_type: str = "Both",
    options: DataOptions | None = None,
    framework: str | None = None,
    workers: int | Executor = 1,
    resume: bool = True,
    allow_constant: bool = False,
    durable: bool = False,
    progress: Callable[[str, float], None] | None = None,
    **framework_options: Any,
) -> QuantizeResult:
    """Calibrate a float model and write its twins, with `<prefix>_record.txt` and `<prefix>_manifest.json` beside them.

    All files appear together, or the target folder stays as it was.

    Args:
        model: as for `calibrate`.
        data: as for `calibrate`.
        save_path: `folder/prefix` of the files; `folder/`, "" and an existing folder mean no prefix.
        config: as for `calibrate`.
        batch_num: as for `calibrate`.
        save_type: "Both", "Fakequant" or "Deploy", in any case of letters.
        options: as for `calibrate`.
        framework: as for `calibrate`.
        workers: as for `calibrate`.
        resume: as for `calibrate`; the state's file is `<prefix>_record.txt.unfinished`.
        allow_constant: as for `calibrate`.
        durable: wait until the disk has everything, so that a power loss cannot undo the save.
        progress: called with what happens next and the fraction that is done, 0 to 1.
        **framework_options: settings that only the model's framework knows; its documentation lists them.

    Returns:
        The files, the records and the manifest.

    Raises:
        TwinQuantError: as `calibrate` and `save_model`.
    """
    flavors = flavors_of(save_type)
    target = parse_save_path(save_path)
    _check_folder(target.folder)
    tell = progress or (lambda _step, _fraction: None)
    chosen = select_framework(model, framework).with_options(framework_options)
    record_name = f"{target.prefix}_record.txt" if target.prefix else "record.txt"
    state_file = target.folder / (record_name + _STATE_ENDING) if resume else None
    request = Request(model, data, config, batch_num, options or DataOptions(), workers, state_file, allow_constant)
    calibrated = run_calibration(chosen, request, lambda what, done: tell(what, 0.8 * done))
    for warning in calibrated.plan.warnings:
        _log.warning(warning)
    texts = {"record.txt": format_records(calibrated.records), "manifest.json": calibrated.manifest.text}
    output = write_twins(
        chosen,
        calibrated.graph,
        calibrated.plan,
        target,
        flavors,
        inputs=calibrated.inputs,
        texts=texts,
        durable=durable,
        progress=tell,
        start=0.8,
    )
    calibrated.checkpoint.discard()
    notify_saved(chosen.name, calibrated.plan, output)
    tell("done", 1.0)
    return QuantizeResult(output, calibrated.records, calibrated.manifest)


def _tell_of_changes(calibrated: Calibrated, path: Path) -> None:
    """Warn that the record is for another model than the user's, if it is."""
    changes = {
        "its normalizations folded": calibrated.folded,
        "its weights balanced": calibrated.balanced,
        "the rounding of its weights trained": calibrated.trained,
    }
    made = [what for what, layers in changes.items() if layers]
    if made:
        _log.warning(
            "the record %s is for the model with %s (layers that differ: %d); save the twins from that model: write it "
            "with prepared_model (--prepared-model), or call quantize",
            path,
            " and ".join(made),
            len({layer for layers in changes.values() for layer in layers}),
        )


def _check_outputs(outputs: Sequence[Path], sources: Sequence[Any]) -> None:
    """Refuse to replace a folder, or a file that is read."""
    inputs = [Path(source) for source in sources if isinstance(source, (str, os.PathLike))]
    for path in outputs:
        if path.is_dir():
            raise OutputPathError(f"{str(path)!r} is a folder; give the name of a file")
        _check_folder(path.parent)
        check_not_inputs([path.name], path.parent, inputs)


def _check_folder(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to, before anything is measured."""
    existing = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    if not existing.is_dir():
        raise OutputPathError(f"the folder {str(folder)!r} cannot be made: {str(existing)!r} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise OutputPathError(f"nothing can be written to the folder {str(existing)!r}; check its permissions")


def _make_folder(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputPathError(f"the folder of {str(path)!r} cannot be made: {error.strerror or error}") from error


def _write_prepared(framework: Framework, calibrated: Calibrated, path: Path) -> None:
    """Write the model that the records are for; files of these names are replaced one by one."""
    _make_folder(path)
    try:
        with tempfile.TemporaryDirectory(prefix=".twinquant-", dir=path.parent) as folder:
            model, *others = framework.write_float(calibrated.graph, Path(folder), path.name)
            for file in (*others, model):
                shutil.move(file, path.parent / file.name)
    except OSError as error:
        raise OutputWriteError(f"the model cannot be written to {str(path)!r}: {error.strerror or error}") from error
