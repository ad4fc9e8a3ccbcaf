"""The two things TwinQuant does, readable from top to bottom: save both twins of a model, and prove that they agree."""

from __future__ import annotations

import logging
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.errors import ArgumentError, CapabilityError, VerificationError
from twinquant.outputs import DualOutput, parse_save_path, recover
from twinquant.plan import build_plan
from twinquant.records import RecordSet, parse_record_file
from twinquant.registry import Capability, notify_saved, select_framework
from twinquant.saving import flavors_of, write_twins
from twinquant.verification import VerifyReport

__all__ = ["save_model", "verify"]

_log = logging.getLogger(__name__)


def save_model(
    graph: Any,
    record_file: str | os.PathLike[str] | RecordSet,
    save_path: str | os.PathLike[str],
    *,
    save_type: str = "Both",
    framework: str | None = None,
    durable: bool = False,
    progress: Callable[[str, float], None] | None = None,
    **options: Any,
) -> DualOutput:
    """Quantize a model with measured factors and write its twins: fake-quant and deploy.

    All files appear together, or the target folder stays as it was.

    Args:
        graph: the model: a path, or an object of its framework.
        record_file: the record file, or the records themselves.
        save_path: `folder/prefix` of the files; `folder/`, "" and an existing folder mean no prefix.
        save_type: "Both", "Fakequant" or "Deploy", in any case of letters.
        framework: name of the framework; None means the one that claims the graph most strongly.
        durable: wait until the disk has everything, so that a power loss cannot undo the save.
        progress: called with what happens next and the fraction that is done, 0 to 1.
        **options: settings that only the model's framework knows; its documentation lists them.

    Returns:
        The files, and the plan that says what was inserted where.

    Raises:
        ArgumentError: `save_type` is none of the three, `framework` names none, a path is no path, or the framework has
            no such option.
        PluginError: no plugin, or more than one, can handle the graph.
        RecordError: the record is wrong, or does not fit the graph.
        ModelError: the model is damaged, unsupported, or cannot be quantized.
        OutputError: the files cannot be written there.
    """
    flavors = flavors_of(save_type)
    target = parse_save_path(save_path)
    tell = progress or (lambda _step, _fraction: None)

    tell("reading the record", 0.0)
    chosen = select_framework(graph, framework).with_options(options)
    records = record_file if isinstance(record_file, RecordSet) else parse_record_file(record_file)
    tell("loading the model", 0.05)
    model = chosen.prepare(chosen.load(graph), records)
    tell("planning", 0.15)
    plan = build_plan(records, chosen.layers(model), chosen.name)
    for warning in plan.warnings:
        _log.warning(warning)

    inputs = [*chosen.inputs(graph, model), *([records.path] if records.path else [])]
    output = write_twins(chosen, model, plan, target, flavors, inputs=inputs, durable=durable, progress=tell)
    notify_saved(chosen.name, plan, output)
    tell("done", 1.0)
    return output


def verify(
    fake_quant: str | os.PathLike[str],
    deploy: str | os.PathLike[str],
    data: str | os.PathLike[str] | Mapping[str, npt.ArrayLike] | None = None,
    *,
    framework: str | None = None,
) -> VerifyReport:
    """Prove that two written twins hold the same integers and compute the same.

    Args:
        fake_quant: the fake-quant model file.
        deploy: the deploy model file.
        data: what to run them on: an .npz file or arrays, by input name; None means seeded random input.
        framework: name of the framework; None means the one that claims the files most strongly.

    Returns:
        What agrees and what does not, layer by layer.

    Raises:
        ArgumentError: `data` is not a readable .npz file of plain arrays, or `framework` names none.
        PluginError: no plugin, or more than one, can read the files; `CapabilityError` if the one cannot verify.
        ModelError: a file is missing, damaged or unsupported.
        OutputError: a save into that folder was killed halfway and cannot be completed.
        VerificationError: the two cannot be compared at all.
    """
    fake_path, deploy_path = Path(fake_quant), Path(deploy)
    for folder in dict.fromkeys((fake_path.parent, deploy_path.parent)):
        recover(folder)
    chosen = select_framework(fake_path, framework)
    other = select_framework(deploy_path, framework)
    if chosen.name != other.name:
        raise VerificationError(
            f"{str(fake_path)!r} is a model of {chosen.name}, {str(deploy_path)!r} one of {other.name}: "
            "twins are of one framework; pass the two files that one save wrote"
        )
    if Capability.VERIFY not in chosen.capabilities:
        raise CapabilityError(f"the {chosen.name} plugin cannot verify twins (in this version)")
    return chosen.verify(fake_path, deploy_path, _arrays(data))


def _arrays(data: str | os.PathLike[str] | Mapping[str, npt.ArrayLike] | None) -> Mapping[str, Any] | None:
    if data is None:
        return None
    if isinstance(data, Mapping):
        return {name: np.asarray(array) for name, array in data.items()}
    path = Path(data)
    try:
        with path.open("rb") as file:  # numpy leaves a file open that it opened and cannot read
            content = np.load(file, allow_pickle=False)
            if not isinstance(content, np.ndarray):
                return {name: content[name] for name in content.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # What NumPy itself says of a file with objects is how to load it unsafely.
        reason = (error.strerror if isinstance(error, OSError) else None) or "it is damaged, or no such file"
        raise ArgumentError(
            f"data: {str(path)!r} cannot be read: {reason}; an .npz file of plain arrays by input name is expected, as "
            "numpy.savez makes it"
        ) from error
    raise ArgumentError(f"data: {str(path)!r} holds one array without a name; make an .npz file with numpy.savez")
