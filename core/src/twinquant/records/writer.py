"""Writing record files: protobuf text that reads back to the same records."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twinquant.errors import OutputWriteError
from twinquant.records.record import Dialect, LayerRecord, RecordSet
from twinquant.records.schema import KV_CACHE_FIELDS, LAYER_FIELDS, FieldSpec, Kind, known_fields
from twinquant.replacing import replace_file

__all__ = ["format_records", "write_record_file", "write_text"]

_logger = logging.getLogger(__name__)

_STRING_ESCAPES = str.maketrans(
    {chr(code): f"\\{code:03o}" for code in (*range(32), 127)}
    | {"\n": r"\n", "\r": r"\r", "\t": r"\t", '"': r"\"", "'": r"\'", "\\": r"\\"}
)


def format_records(record_set: RecordSet, *, dialect: Dialect | None = None) -> str:
    """Give the text of a record file.

    Every field that is present is written, so that reading the text loses nothing; floats are the shortest text that
    reads back to the same float32. Fields come in the order of the dialect: first scale_d, offset_d, scale_w and
    offset_w, then the others that it knows, then those that it does not.

    Args:
        record_set: the records.
        dialect: whose reader the text is for. Naming it warns, on the module's logger, of fields that this reader
            refuses. None takes the dialect of the records.
    """
    if dialect is not None:
        _warn_of_foreign_fields(record_set, dialect)
    specs = _in_writing_order(dialect or record_set.dialect)
    lines = [line for record in record_set for line in _record_lines(record, specs)]
    return "".join(f"{line}\n" for line in (*lines, *record_set.prune_records))


def write_record_file(record_set: RecordSet, path: str | os.PathLike[str], *, dialect: Dialect | None = None) -> None:
    """Write a record file, or leave what is there untouched.

    Args:
        record_set: the records.
        path: the file to write; its folder exists, the file itself may.
        dialect: as for `format_records`.

    Raises:
        OutputWriteError: the folder is missing or not writable, the disk is full, or the target is a folder.
    """
    write_text(format_records(record_set, dialect=dialect), Path(path))


def write_text(text: str, path: Path) -> None:
    """Write the text of a record file; see `write_record_file`."""
    try:
        replace_file(path, text.encode())
    except OSError as error:
        raise OutputWriteError(
            f"record file {str(path)!r} cannot be written: {error.strerror or error}; "
            "its folder has to exist, be writable and have space left"
        ) from error


def _in_writing_order(dialect: Dialect) -> tuple[FieldSpec, ...]:
    rank = {name: position for position, name in enumerate(known_fields(dialect))}
    return tuple(sorted(LAYER_FIELDS, key=lambda spec: rank.get(spec.name, len(rank))))


def _record_lines(record: LayerRecord, specs: Sequence[FieldSpec]) -> Iterator[str]:
    yield "record {"
    yield f"  key: {_string_text(record.key)}"
    if record.has_value:
        yield from _block_lines("value", record, specs)
    if record.kv_cache is not None:
        yield from _block_lines("kv_cache_value", record.kv_cache, KV_CACHE_FIELDS)
    yield "}"


def _block_lines(name: str, holder: Any, specs: Sequence[FieldSpec]) -> Iterator[str]:
    yield f"  {name} {{"
    for spec in specs:
        format_value = _FORMATS[spec.kind]
        for value in _values(holder, spec):
            yield f"    {spec.name}: {format_value(value)}"
    yield "  }"


def _values(holder: Any, spec: FieldSpec) -> tuple[Any, ...]:
    value = getattr(holder, spec.name)
    if spec.repeated:
        return tuple(value)
    return () if value is None else (value,)


def _float_text(value: float) -> str:
    number = np.float32(value)
    # NumPy's own str() of a float32 depends on a global print option; these two functions do not.
    if number == 0 or 1e-4 <= abs(number) < 1e16:
        return np.format_float_positional(number, trim="-")
    return np.format_float_scientific(number, trim="-")


def _int_text(value: int) -> str:
    return str(int(value))


def _bool_text(value: bool) -> str:
    return "true" if value else "false"


def _string_text(value: str) -> str:
    return f'"{value.translate(_STRING_ESCAPES)}"'


_FORMATS: dict[Kind, Callable[[Any], str]] = {
    Kind.FLOAT: _float_text,
    Kind.INT32: _int_text,
    Kind.UINT32: _int_text,
    Kind.BOOL: _bool_text,
    Kind.STRING: _string_text,
}


def _warn_of_foreign_fields(record_set: RecordSet, dialect: Dialect) -> None:
    known = known_fields(dialect)
    foreign = [
        spec.name
        for spec in LAYER_FIELDS
        if spec.name not in known and any(_values(record, spec) for record in record_set)
    ]
    if "kv_cache_value" not in known and any(record.kv_cache is not None for record in record_set):
        foreign.append("kv_cache_value")
    if foreign:
        _logger.warning(
            "%s: written with %s, which readers of the %s dialect refuse",
            record_set.source,
            ", ".join(foreign),
            dialect.value,
        )
