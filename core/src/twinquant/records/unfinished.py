"""Record files of a calibration that is under way: they say so, and how far it is, instead of looking complete."""

from __future__ import annotations

import os
from pathlib import Path

from twinquant.records.parser import UNFINISHED, parse_record_text
from twinquant.records.record import RecordSet
from twinquant.records.writer import format_records, write_text

__all__ = ["read_begun_records", "write_unfinished_record"]


def write_unfinished_record(record_set: RecordSet, path: str | os.PathLike[str], progress: str) -> None:
    """Write a record file that is refused, with the reason, by whoever reads it as a complete one.

    Args:
        record_set: the factors that are known already; maybe none.
        path: the file to write; its folder exists, the file itself may.
        progress: how far the calibration is, such as "2 of 8 batches seen".

    Raises:
        OutputWriteError: as `write_record_file`.
    """
    note = " ".join(progress.split())
    write_text(f"{UNFINISHED}{note}\n{format_records(record_set)}", Path(path))


def read_begun_records(path: Path) -> RecordSet:
    """Read the factors of a record file, whether its calibration has finished or not.

    Returns:
        the records; none if the file is missing or empty.

    Raises:
        RecordError: the file is no record file.
    """
    text = path.read_text(encoding="utf-8", errors="surrogateescape") if path.is_file() else ""
    if text.startswith(UNFINISHED):
        text = text.partition("\n")[2]
    return parse_record_text(text, path=path) if text.strip() else RecordSet({})
