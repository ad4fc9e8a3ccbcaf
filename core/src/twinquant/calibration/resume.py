"""The file beside the record that lets a calibration go on where it was cut off."""

from __future__ import annotations

import io
import json
import logging
import time
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from twinquant.calibration.observer import State
from twinquant.calibration.station import Station
from twinquant.calibration.watches import Watch
from twinquant.errors import ArgumentError, OutputWriteError
from twinquant.replacing import replace_file

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
        try:
            with self._path.open("rb") as file, np.load(file, allow_pickle=False) as content:
                header = json.loads(str(content[_HEADER]))
                if header["key"] != self._key:
                    _log.info("%s is of another calibration; starting from the beginning", self._path)
                    return None
                states: list[State] = [{} for _ in watches]
                for name in content.files:
                    position, _, inner = name.partition("/")
                    if inner:
                        states[int(position)][inner] = content[name]
            stations = [Station.restored(watch, state) for watch, state in zip(watches, states, strict=True)]
        except (
            OSError,
            ValueError,
            KeyError,
            IndexError,
            EOFError,
            zipfile.BadZipFile,
            zlib.error,
            ArgumentError,
        ) as error:
            _log.warning("%s cannot be read (%s); starting from the beginning", self._path, error)
            return None
        digests = {int(number): digest for number, digest in header["digests"].items()}
        snapshot = Snapshot(stations, header["pass"], set(header["done"]), digests)
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
        arrays: dict[str, Any] = {_HEADER: np.array(json.dumps(header))}
        for position, station in enumerate(snapshot.stations):
            arrays.update({f"{position}/{name}": array for name, array in station.state().items()})
        buffer = io.BytesIO()
        np.savez(buffer, **arrays)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            replace_file(self._path, buffer.getbuffer())
        except OSError as error:
            raise OutputWriteError(
                f"the state of the calibration cannot be stored in {str(self._path)!r}: {error.strerror or error}; "
                "make room there, or calibrate with resume=False"
            ) from error
        self._last = time.monotonic()

    def discard(self) -> None:
        """Remove the file: the calibration is complete."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
