"""What a modified model has to know to fill its record, stored in the model itself."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path

__all__ = ["CalibrationJob", "Purpose"]


class Purpose(str, Enum):
    """What the batches are for."""

    FACTORS = "factors"
    """Scales and offsets: the model of `quantize_model`."""
    BALANCE = "balance"
    """Balance factors: the model of `quantize_preprocess`."""


@dataclass(frozen=True, slots=True)
class CalibrationJob:
    """The calibration that a modified model stands for.

    Attributes:
        purpose: what is measured.
        model: absolute path of the modified model.
        record: absolute path of the record file.
        config: the configuration, as JSON.
        batch_num: how many batches are wanted.
        inputs: the model's inputs, in the order in which they are stored.
        element_types: their element types, under NumPy's names.
        keep_batches: the stored batches stay when the record is complete.
    """

    purpose: Purpose
    model: str
    record: str
    config: str
    batch_num: int
    inputs: tuple[str, ...]
    element_types: tuple[str, ...]
    keep_batches: bool = False

    @property
    def folder(self) -> Path:
        """The folder that holds the batches until there are enough."""
        return Path(f"{self.record}.batches")

    def to_text(self) -> str:
        """Return the job as the text that `from_text` reads."""
        return json.dumps(asdict(self))

    @classmethod
    def from_text(cls, text: str) -> CalibrationJob:
        """Read what `to_text` gave."""
        fields = json.loads(text)
        fields["purpose"] = Purpose(fields["purpose"])
        for name in ("inputs", "element_types"):
            fields[name] = tuple(fields[name])
        return cls(**fields)
