"""What a modified model has to know to fill its record, stored in the model itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

from twinquant.config import ActivationConfig, LayerConfig, QuantConfig, WeightConfig
from twinquant.records import Dialect, RecordSet, format_records, parse_record_text

__all__ = ["CalibrationJob", "Purpose"]


class Purpose(str, Enum):
    """What the batches are for."""

    FACTORS = "factors"
    """Scales and offsets: the model of `quantize_model`."""
    BALANCE = "balance"
    """Balance factors: the model of `quantize_preprocess`."""


@dataclass(frozen=True, slots=True, eq=False)
class CalibrationJob:
    """The calibration that a modified model stands for.

    Attributes:
        purpose: what is measured.
        model: absolute path of the modified model.
        record: absolute path of the record file.
        config: the configuration, settled for the layers that there are.
        begun: what is known before the first batch: the scales of the float weights, and balance factors.
        inputs: the model's inputs, in the order in which they are stored.
        element_types: their element types, under NumPy's names.
        keep_batches: the stored batches stay when the record is complete.
    """

    purpose: Purpose
    model: str
    record: str
    config: QuantConfig
    begun: RecordSet
    inputs: tuple[str, ...]
    element_types: tuple[str, ...]
    keep_batches: bool = False

    @property
    def batch_num(self) -> int:
        """How many batches are wanted."""
        return self.config.batch_num

    @property
    def folder(self) -> Path:
        """The folder that holds the batches until there are enough."""
        return Path(f"{self.record}.batches")

    def to_text(self) -> str:
        """Return the job as the text that `from_text` reads."""
        fields = {name: getattr(self, name) for name in self.__slots__}
        return json.dumps(fields | {"config": asdict(self.config), "begun": format_records(self.begun)})

    @staticmethod
    @lru_cache(maxsize=8)  # every batch of a session brings the text again
    def from_text(text: str) -> CalibrationJob:
        """Read what `to_text` gave."""
        fields = json.loads(text)
        begun, config = fields["begun"], fields["config"]
        fields |= {
            "purpose": Purpose(fields["purpose"]),
            "config": QuantConfig(
                **_settings(config) | {"layers": {k: _layer(v) for k, v in config["layers"].items()}}
            ),
            "begun": parse_record_text(begun, dialect=Dialect.ONNX) if begun else RecordSet({}, Dialect.ONNX),
        }
        return CalibrationJob(**_settings(fields))


def _settings(fields: dict[str, Any]) -> dict[str, Any]:
    """Return fields as they were before they went through JSON, which has no tuples."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _layer(fields: dict[str, Any]) -> LayerConfig:
    activation, weight = (_settings(fields[name]) for name in ("activation", "weight"))
    return replace(LayerConfig(**fields), activation=ActivationConfig(**activation), weight=WeightConfig(**weight))
