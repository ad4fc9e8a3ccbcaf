"""The files that tell about a search, under the vendor's names."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from twinquant.calibration.auto import Search
from twinquant.config import QuantConfig, write_config
from twinquant.errors import OutputWriteError
from twinquant.replacing import replace_file

__all__ = ["FINAL_CONFIG", "RANKING", "REPORT", "write_final_config", "write_report"]

REPORT = "accuracy_based_auto_calibration_record.json"
RANKING = "accuracy_based_auto_calibration_ranking_information.json"
FINAL_CONFIG = "accuracy_based_auto_calibration_final_config.json"


def write_report(search: Search, folder: Path) -> None:
    """Write every trial of a search, and the layers by sensitivity if they were ranked.

    Raises:
        OutputWriteError: the files cannot be written.
    """
    best = search.best
    trials = [
        {
            "float_layers": list(trial.float_layers),
            "satisfied": trial.satisfied,
            "loss": trial.loss if math.isfinite(trial.loss) else None,
            "best": trial is best,
        }
        for trial in search.trials
    ]
    _write({"stopped": search.stopped, "trials": trials}, folder / REPORT)
    _write([[name, similarity] for name, similarity in search.similarities.items()], folder / RANKING)


def write_final_config(config: QuantConfig, float_layers: Collection[str], folder: Path) -> None:
    """Write the configuration with the layers switched off that stay float.

    Raises:
        OutputWriteError: the file cannot be written.
    """
    layers = {
        name: replace(layer, quant_enable=layer.quant_enable and name not in float_layers)
        for name, layer in config.layers.items()
    }
    write_config(replace(config, layers=layers), folder / FINAL_CONFIG)


def _write(content: Any, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, (json.dumps(content, indent=4, ensure_ascii=False) + "\n").encode())
    except OSError as error:
        raise OutputWriteError(f"{str(path)!r} cannot be written: {error.strerror or error}") from error
