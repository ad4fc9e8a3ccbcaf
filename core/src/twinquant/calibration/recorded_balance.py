"""Balance factors that an earlier step measured: from a begun record to the layers that are to be balanced."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from twinquant.config import QuantConfig
from twinquant.errors import ConfigError
from twinquant.plan import LayerInfo, check_balance_factors
from twinquant.records import read_begun_records

__all__ = ["balanced_layers", "recorded_balance"]


def balanced_layers(config: QuantConfig) -> list[str]:
    """Return the layers that a configuration wants to be balanced."""
    return [
        name for name, layer in config.layers.items() if layer.quant_enable and layer.dmq_migration_strength is not None
    ]


def recorded_balance(
    config: QuantConfig, layers: Sequence[LayerInfo], record_file: Path, *, framework: str, config_name: str
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the balance factors of every layer that is to be balanced: float32 `(Cin,)`.

    Args:
        config: the configuration.
        layers: the layers of the model.
        record_file: the record that `quantize_preprocess` filled.
        framework: name of the model's framework.
        config_name: how messages call the configuration.

    Raises:
        ConfigError: factors have to be measured first.
        RecordError: the record is damaged, or its factors do not fit their layer.
    """
    wanted = balanced_layers(config)
    if not wanted:
        return {}
    begun = read_begun_records(record_file)
    known = {name: begun.records[name] for name in wanted if name in begun.records}
    missing = [name for name in wanted if name not in known or not known[name].tensor_balance_factor.size]
    if missing:
        raise ConfigError(
            f"{config_name}: layer {missing[0]!r} is to be balanced (dmq_balancer_param), but {str(record_file)!r} has "
            "no tensor_balance_factor for it; call quantize_preprocess with this configuration and record file first, "
            "and run its model",
            path=f"$.{missing[0]}.dmq_balancer_param",
        )
    infos = {layer.name: layer for layer in layers}
    for name, record in known.items():
        check_balance_factors(record, infos[name], framework, f"record file {str(record_file)!r}")
    return {name: record.tensor_balance_factor for name, record in known.items()}
