"""What the calibration layers of a modified net have to know, in a file beside the record."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twinquant.calibration.options import ObserverOptions
from twinquant.calibration.watches import Watch
from twinquant.registry import Tap

__all__ = ["CalibrationJob", "job_folder", "record_of"]

_FILE = "job.json"
_ENDING = ".batches"


def job_folder(record: Path) -> Path:
    """Return the folder that holds what the calibration layers of a record have seen."""
    return Path(f"{record}{_ENDING}")


def record_of(folder: Path) -> Path:
    """Return the record of such a folder."""
    return folder.with_name(folder.name.removesuffix(_ENDING))


@dataclass(frozen=True, slots=True)
class CalibrationJob:
    """The calibration that a modified net stands for.

    Attributes:
        record: absolute path of the record file.
        batch_num: how many batches are wanted.
        watches: what is watched, one for each calibration layer.
        keep_batches: all batches are kept, and stay when the record is complete.
    """

    record: str
    batch_num: int
    watches: tuple[Watch, ...]
    keep_batches: bool = False

    @property
    def folder(self) -> Path:
        """The folder that holds what was seen until the record is complete."""
        return job_folder(Path(self.record))

    def write(self, folder: Path) -> None:
        """Write the job into a folder that exists, and that becomes its own."""
        (folder / _FILE).write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> CalibrationJob | None:
        """Return the job of a folder; None where there is none: it is done, or it was removed."""
        try:
            fields = json.loads((folder / _FILE).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return cls(**{**fields, "watches": tuple(map(_watch, fields["watches"]))})


def _watch(fields: dict[str, Any]) -> Watch:
    options = fields["options"]
    return Watch(
        tap=Tap(**fields["tap"]),
        layers=tuple(fields["layers"]),
        options=ObserverOptions(**{**options, "search_range": tuple(options["search_range"])}),
        migration_strength=fields["migration_strength"],
        channel_axis=fields["channel_axis"],
    )
