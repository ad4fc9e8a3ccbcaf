"""Reading record files: from a path or a text to a `RecordSet`, or to an error that says what is wrong with it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from twinquant.errors import ArgumentError, RecordFileError, RecordSyntaxError, RecordValueError
from twinquant.records.blocks import set_aside
from twinquant.records.entry import RecordEntry
from twinquant.records.ordinary_reader import read_ordinary
from twinquant.records.protobuf_reader import read_with_protobuf
from twinquant.records.record import Dialect, KvCacheFactors, LayerRecord, RecordSet
from twinquant.records.schema import detect_dialect

__all__ = ["UNFINISHED", "parse_record_file", "parse_record_text"]

UNFINISHED = "# calibration has not finished: "
"""What a record file begins with while its factors are being measured; the rest of the line says how far that is."""

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


def parse_record_file(path: str | os.PathLike[str], *, dialect: Dialect | None = None) -> RecordSet:
    """Read a record file of any dialect.

    Values are neither checked for their range nor against a graph here. Of records with one key the last is kept, and
    the result's `duplicate_keys` names the key.

    Args:
        path: the file, protobuf text in UTF-8.
        dialect: whose schema the file follows. All dialects are read alike; the dialect serves defaults and writing.
            None detects it by the first rule that holds: `channels`, `height` or `width` occur: Caffe if its schema has
            all the fields of the file, otherwise third party; `is_tensor_quantize`, `op_data_type` or `cluster`: ONNX;
            `kv_cache_value`: torch; `shift_bit`: Caffe; otherwise ONNX.

    Returns:
        The records in file order.

    Raises:
        ArgumentError: `path` is no path.
        RecordFileError: the file is missing, a folder, unreadable or binary, holds no record at all, or says that its
            calibration has not finished.
        RecordSyntaxError: the file is not protobuf text, or has a field that no dialect knows.
        RecordValueError: a record has no key or no value block.
    """
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
        raise ArgumentError(f"record_file: must be the path of a record file, got {path!r}")
    path = Path(path)
    return _parse(_read_bytes(path), dialect, path)


def parse_record_text(text: str, *, dialect: Dialect | None = None, path: Path | None = None) -> RecordSet:
    """Read the text of a record file.

    Args:
        text: protobuf text.
        dialect: as for `parse_record_file`.
        path: the file that messages name; it is not touched. None if the text is no file's.

    Returns:
        The records in the order of the text.

    Raises:
        RecordFileError: the text is binary, or holds no record at all.
        RecordSyntaxError: the text is not protobuf text, or has a field that no dialect knows.
        RecordValueError: a record has no key or no value block.
    """
    # A lone surrogate is no text; what it encodes to is refused like any other file that is not UTF-8.
    return _parse(text.encode("utf-8", "surrogatepass"), dialect, path)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise RecordFileError(
            f"record file {str(path)!r} does not exist; give the path that calibration was told to write its record to"
        ) from error
    except IsADirectoryError as error:
        raise RecordFileError(f"record file {str(path)!r} is a folder; give the path of the file in it") from error
    except PermissionError as error:
        raise RecordFileError(f"record file {str(path)!r} may not be read; check its permissions") from error
    except (OSError, ValueError) as error:
        raise RecordFileError(f"record file {str(path)!r} cannot be read: {error}") from error


def _parse(data: bytes, dialect: Dialect | None, path: Path | None) -> RecordSet:
    source = RecordSet({}, path=path).source
    data = data.removeprefix(_BYTE_ORDER_MARK)
    _refuse_binary(data, source)
    _refuse_unfinished(data.decode(), source)
    data, prune_records = _set_prune_records_aside(data, source)
    entries = read_ordinary(data)
    if entries is None:
        entries = read_with_protobuf(data.decode(), source)
    if not entries:
        raise RecordFileError(
            f"{source}: no record at all, so calibration has not finished; first run at least batch_num forward "
            "passes of the model that is being calibrated"
        )
    return RecordSet(
        records={record.key: record for record in (_layer_record(entry, source) for entry in entries)},
        dialect=dialect or detect_dialect(_present_fields(entries)),
        path=path,
        prune_records=prune_records,
        duplicate_keys=_duplicate_keys(entries),
    )


def _refuse_binary(data: bytes, source: str) -> None:
    advice = "a record file is protobuf text in UTF-8; is this a model or a file in another encoding?"
    if (zero := data.find(0)) >= 0:
        raise RecordFileError(f"{source}: not text, as byte {zero} is a zero; {advice}")
    try:
        data.decode()
    except UnicodeDecodeError as error:
        raise RecordFileError(f"{source}: not text, as byte {error.start} is not UTF-8; {advice}") from error


def _refuse_unfinished(text: str, source: str) -> None:
    if text.startswith(UNFINISHED):
        progress = text.partition("\n")[0].removeprefix(UNFINISHED)
        raise RecordFileError(
            f"{source}: calibration has not finished: {progress}; run the model that is being calibrated on all "
            "batches (batch_num), then save"
        )


def _set_prune_records_aside(data: bytes, source: str) -> tuple[bytes, tuple[str, ...]]:
    rest, blocks = set_aside(data, b"prune_record")
    for block in blocks:
        if not block.closed:
            line = data.count(b"\n", 0, block.start) + 1
            column = block.start - data.rfind(b"\n", 0, block.start)
            raise RecordSyntaxError(
                f"{source}, line {line}: this 'prune_record' block is not closed; expected '}}' before the end",
                line=line,
                column=column,
            )
    return rest, tuple(data[block.start : block.stop].decode() for block in blocks)


def _duplicate_keys(entries: list[RecordEntry]) -> tuple[str, ...]:
    counts: dict[str, int] = {}
    for entry in entries:
        if entry.key:
            counts[entry.key] = counts.get(entry.key, 0) + 1
    return tuple(key for key, count in counts.items() if count > 1)


def _layer_record(entry: RecordEntry, source: str) -> LayerRecord:
    if not entry.key:
        what = "no 'key'" if entry.key is None else "an empty 'key'"
        raise RecordValueError(
            f"{source}, line {entry.line}: this record has {what}; it has to be the layer's name", field="key"
        )
    if entry.value is None and entry.kv_cache is None:
        raise RecordValueError(
            f"{source}, line {entry.line}: record {entry.key!r} has no 'value' block; the layer's factors belong there",
            key=entry.key,
            field="value",
        )
    value: dict[str, Any] = entry.value or {}
    return LayerRecord(
        key=entry.key,
        line=entry.line,
        has_value=entry.value is not None,
        kv_cache=None if entry.kv_cache is None else KvCacheFactors(**entry.kv_cache),
        **value,
    )


def _present_fields(entries: list[RecordEntry]) -> set[str]:
    present: set[str] = set()
    for entry in entries:
        present.update(entry.value or ())
        if entry.kv_cache is not None:
            present.add("kv_cache_value")
    return present
