"""Writing the configuration that a calibration starts with."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from twinquant.config.builder import create_config
from twinquant.config.json_file import write_config
from twinquant.errors import OutputPathError
from twinquant.outputs.ownership import check_not_inputs
from twinquant.plan import LayerInfo

__all__ = ["write_new_config"]


def write_new_config(
    layers: Sequence[LayerInfo],
    config_file: str | os.PathLike[str],
    *,
    skip_layers: Sequence[str] | None,
    batch_num: int,
    activation_offset: bool,
    definition: str | os.PathLike[str] | None,
    inputs: Sequence[str | os.PathLike[str]] = (),
) -> None:
    """Write a configuration that quantizes every layer of a model that can be quantized, as JSON.

    Args:
        layers: every node of the model, in graph order.
        config_file: the file; its folder is made where it is missing.
        skip_layers: layers that are not quantized; None: none.
        batch_num: how many batches calibration wants.
        activation_offset: whether activations have an offset.
        definition: a simplified configuration (.cfg), which counts more than the arguments; None: there is none.
        inputs: the files that the model was read from.

    Raises:
        ConfigError: a setting or a layer is unknown, or no layer is left.
        OutputError: the file cannot be written, or is an input.
    """
    path = Path(config_file)
    read = [Path(file) for file in (*inputs, *(() if definition is None else (definition,)))]
    check_not_inputs([path.name], path.parent, read)
    config = create_config(
        layers,
        skip_layers=skip_layers,
        batch_num=batch_num,
        activation_offset=activation_offset,
        definition=definition,
    )
    folder = path.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputPathError(f"the folder {str(folder)!r} cannot be made: {error}") from error
    write_config(config, path)
