"""What the calibration layers of a modified net have to know, in a file beside the record."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from twinquant.calibration.options import ObserverOptions
from twinquant.calibration.spool import BatchSpool, remove_batches
from twinquant.calibration.watches import Watch
from twinquant.registry import Tap

__all__ = ["CalibrationJob", "job_folder", "record_of", "remove_job"]

_FILE = "job.json"
_ENDING = ".batches"
_INPUTS = "inputs"


def job_folder(record: Path) -> Path:
    """Return the folder that holds what is known of a record's calibration until it is complete."""
    return Path(f"{record}{_ENDING}")


def record_of(folder: Path) -> Path:
    """Return the record of such a folder."""
    return folder.with_name(folder.name.removesuffix(_ENDING))


def remove_job(record: Path) -> None:
    """Remove the folder of a record, with the batches in it; where there is none, nothing happens."""
    folder = job_folder(record)
    # The batches first: as long as there is a job, whoever finds the rest knows what it is.
    remove_batches(folder / _INPUTS)
    if folder.exists():
        shutil.rmtree(folder)


@dataclass(frozen=True, slots=True)
class CalibrationJob:
    """The calibration that a modified net stands for.

    Attributes:
        key: tells this call of `quantize_model` from all others; the layers of its modified net have it, too.
        record: absolute path of the record file.
        model: absolute path of the modified net's prototxt.
        weights: absolute path of its caffemodel.
        weights_sha256: the fingerprint of that.
        batch_num: how many batches are wanted.
        inputs: the blobs that are stored, in the order in which they arrive.
        watches: what is watched.
        keep_batches: the stored batches stay when the record is complete.
    """

    key: str
    record: str
    model: str
    weights: str
    weights_sha256: str
    batch_num: int
    inputs: tuple[str, ...]
    watches: tuple[Watch, ...]
    keep_batches: bool = False

    @property
    def spool(self) -> BatchSpool:
        """The batches that are stored until there are enough."""
        return BatchSpool(job_folder(Path(self.record)) / _INPUTS, self.inputs)

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
        watches = tuple(map(_watch, fields["watches"]))
        return cls(**{**fields, "inputs": tuple(fields["inputs"]), "watches": watches})


def _watch(fields: dict[str, Any]) -> Watch:
    options = fields["options"]
    return Watch(
        tap=Tap(**fields["tap"]),
        layers=tuple(fields["layers"]),
        options=ObserverOptions(**{**options, "search_range": tuple(options["search_range"])}),
        migration_strength=fields["migration_strength"],
        channel_axis=fields["channel_axis"],
    )
