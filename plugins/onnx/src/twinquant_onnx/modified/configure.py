"""Writing the configuration that calibration starts with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from twinquant.config import create_config, write_config
from twinquant.errors import OutputPathError
from twinquant_onnx.framework import OnnxFramework

__all__ = ["write_quant_config"]

StrPath = str | os.PathLike[str]


def write_quant_config(
    config_file: StrPath,
    model_file: StrPath,
    *,
    skip_layers: Sequence[str] | None,
    batch_num: int,
    activation_offset: bool,
    definition: StrPath | None,
) -> None:
    """Write a configuration for a model; see `amct.create_quant_config`."""
    config = create_config(
        OnnxFramework().load(model_file).layers,
        skip_layers=skip_layers,
        batch_num=batch_num,
        activation_offset=activation_offset,
        definition=definition,
    )
    folder = Path(config_file).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputPathError(f"the folder {str(folder)!r} cannot be made: {error}") from error
    write_config(config, config_file)
