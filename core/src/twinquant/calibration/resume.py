"""The file beside the record that lets a calibration go on where it was cut off."""

from __future__ import annotations

import json
import logging
import os
import time
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.calibration.station import Station
from twinquant.calibration.watches import Watch
from twinquant.errors import ArgumentError, OutputWriteError
from twinquant.replacing import remove_abandoned_parts, replacing

__all__ = ["Checkpoint", "Snapshot"]

_log = logging.getLogger(__name__)

SAVE_SECONDS = 5.0
"""How much work is lost at most when a calibration is killed."""

_HEADER = "header"


@dataclass(slots=True)
class Snapshot:
    """A calibration between two batches.

    Attributes:
        stations: what was accumulated.
        number_of_pass: the current pass, from 1.
        done: which batches it has gone through.
        digests: the fingerprints of the batches that were seen, by number.
    """

    stations: list[Station]
    number_of_pass: int = 1
    done: set[int] = field(default_factory=set)
    digests: dict[int, str] = field(default_factory=dict)


class Checkpoint:
    """Stores snapshots in one file, each replacing the one before in one step.

    Args:
        path: the file; None: nothing is stored.
        key: what the calibration depends on: a snapshot with another one is of no use.
    """

    def __init__(self, path: Path | None, key: str) -> None:
        self._path, self._key = path, key
        self._last = time.monotonic()

    def load(self, watches: Sequence[Watch]) -> Snapshot | None:
        """Return the stored snapshot; None where there is none for this calibration, or it is damaged."""
        if self._path is None or not self._path.exists():
            return None
        if self._path.is_dir():
            raise OutputWriteError(
                f"{str(self._path)!r} is a folder, where the state of the calibration is to be stored in a file; "
                "move it away, or calibrate with resume=False"
            )
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                header = json.loads(content[_HEADER].tobytes())
                if header["key"] != self._key:
                    _log.info("%s is of another calibration; starting from the beginning", self._path)
                    return None
                digests = {int(number): str(digest) for number, digest in header["digests"].items()}
                snapshot = Snapshot([], int(header["pass"]), set(header["done"]), digests)
                names: dict[int, list[str]] = {position: [] for position in range(len(watches))}
                for name in content.files:
                    if name != _HEADER:
                        names[int(name.partition("/")[0])].append(name)
                # One station after the other: together, their arrays would be in memory twice.
                for watch, own in zip(watches, names.values(), strict=True):
                    state = {name.partition("/")[2]: content[name] for name in own}
                    snapshot.stations.append(Station.restored(watch, state))
        except (
            OSError,
            ValueError,
            TypeError,
            KeyError,
            IndexError,
            AttributeError,
            RuntimeError,
            EOFError,
            zipfile.BadZipFile,
            zlib.error,
            ArgumentError,
        ) as error:  # what damaged files and other programs' make of reading
            _log.warning("%s cannot be read (%s); starting from the beginning", self._path, error)
            return None
        _log.info("going on with pass %d after %d batches: %s", snapshot.number_of_pass, len(snapshot.done), self._path)
        return snapshot

    def save_sometimes(self, snapshot: Snapshot) -> None:
        """Store a snapshot if the last one is some seconds old."""
        if time.monotonic() - self._last >= SAVE_SECONDS:
            self.save(snapshot)

    def save(self, snapshot: Snapshot) -> None:
        """Store a snapshot.

        Raises:
            OutputWriteError: it cannot be written.
        """
        if self._path is None:
            return
        header = {
            "key": self._key,
            "pass": snapshot.number_of_pass,
            "done": sorted(snapshot.done),
            "digests": snapshot.digests,
        }
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(self._path) as file, zipfile.ZipFile(file, "w") as archive:
                _store(archive, _HEADER, np.frombuffer(json.dumps(header).encode(), np.uint8))
                for position, station in enumerate(snapshot.stations):
                    for name, array in station.state().items():
                        _store(archive, f"{position}/{name}", array)
        except OSError as error:
            raise OutputWriteError(
                f"the state of the calibration cannot be stored in {str(self._path)!r}: {error.strerror or error}; "
                "make room there, or calibrate with resume=False"
            ) from error
        self._last = time.monotonic()

    def discard(self) -> None:
        """Remove the file: the calibration is complete. Where that cannot be done, a warning says so."""
        if self._path is None:
            return
        file = Path(os.path.realpath(self._path))  # a link stays, as when the file is stored
        try:
            file.unlink(missing_ok=True)
            remove_abandoned_parts(file)
        except OSError as error:
            _log.warning("%s is not needed any more and cannot be removed: %s", file, error.strerror or error)


def _store(archive: zipfile.ZipFile, name: str, array: npt.NDArray[Any]) -> None:
    """Add an array as `numpy.savez` does, which would need all of them at once."""
    with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array(member, array, allow_pickle=False)
