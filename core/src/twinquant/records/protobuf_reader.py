"""The exact reader: protobuf's own text parser, for files in an unusual layout and for files that are wrong."""

from __future__ import annotations

import difflib
import re
from typing import Any

import numpy as np
from google.protobuf import text_format

from twinquant.errors import RecordSyntaxError
from twinquant.records.blocks import top_level_blocks
from twinquant.records.entry import ARRAY_DTYPES, RecordEntry
from twinquant.records.schema import KV_CACHE_FIELDS, LAYER_FIELDS, FieldSpec, field_homes, record_file_message

__all__ = ["read_with_protobuf"]

_UNKNOWN_FIELD = re.compile(r'Message type "([^"]+)" has no field named "(.+)"')
_POSITION = re.compile(r"^\d+:\d+ : ")
_KEY = re.compile(rb"""\bkey\s*:\s*("(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')""")
# A broken file may be one line of any length; protobuf's message repeats the line.
_LONGEST_DETAIL = 300


def read_with_protobuf(text: str, source: str) -> list[RecordEntry]:
    """Read a record file of any layout.

    Args:
        text: the text, without `prune_record` blocks.
        source: how messages call the file.

    Returns:
        One entry for each record block.

    Raises:
        RecordSyntaxError: the text is not protobuf text, or has a field that no dialect knows.
    """
    message = record_file_message()()
    try:
        text_format.Merge(text, message)
    except text_format.ParseError as error:
        raise _syntax_error(error, text, source) from error
    data = text.encode()
    entries = []
    line = 1
    counted = 0
    for record, block in zip(message.record, top_level_blocks(data), strict=True):
        line += data.count(b"\n", counted, block.start)
        counted = block.start
        entries.append(_entry(record, line))
    return entries


def _entry(record: Any, line: int) -> RecordEntry:
    return RecordEntry(
        line=line,
        key=record.key if record.HasField("key") else None,
        value=_present_fields(record.value, LAYER_FIELDS) if record.HasField("value") else None,
        kv_cache=_present_fields(record.kv_cache_value, KV_CACHE_FIELDS) if record.HasField("kv_cache_value") else None,
    )


def _present_fields(message: Any, specs: tuple[FieldSpec, ...]) -> dict[str, Any]:
    present: dict[str, Any] = {}
    for spec in specs:
        if not spec.repeated:
            if message.HasField(spec.name):
                present[spec.name] = getattr(message, spec.name)
        elif values := getattr(message, spec.name):
            present[spec.name] = np.array(values, ARRAY_DTYPES[spec.kind])
    return present


def _syntax_error(error: text_format.ParseError, text: str, source: str) -> RecordSyntaxError:
    line, column = error.GetLine() or 1, error.GetColumn() or 1
    where = f"{source}, line {line}, column {column}"
    record, key = _enclosing_record(text, line, column)
    unknown = _UNKNOWN_FIELD.search(str(error))
    if unknown is None:
        detail = _POSITION.sub("", str(error))[:_LONGEST_DETAIL]
        result = RecordSyntaxError(f"{where}: {record} is not protobuf text: {detail}", line=line, column=column)
    else:
        block, field = unknown.groups()
        advice = _advice(block, field)
        result = RecordSyntaxError(
            f"{where}: {record} has a field {field!r} that no dialect knows here; {advice}", line=line, column=column
        )
        result.field = field
    result.key = key
    return result


def _enclosing_record(text: str, line: int, column: int) -> tuple[str, str | None]:
    """Tell which record a position is in: how messages call it, and its key."""
    lines = text.split("\n")
    position = len("\n".join([*lines[: line - 1], lines[line - 1][: column - 1]]).encode())
    data = text.encode()
    for block in top_level_blocks(data):
        if block.start <= position < block.stop or not block.closed:
            key = _KEY.search(data, block.start, block.stop)
            if key is None:
                first_line = data.count(b"\n", 0, block.start) + 1
                return f"the record on line {first_line}", None
            name = key.group(1)[1:-1].decode()
            return f"record {name!r}", name
    return "the text", None


def _advice(block: str, field: str) -> str:
    homes = field_homes()
    if close := difflib.get_close_matches(field, homes[block], n=4):
        return f"did you mean {' or '.join(map(repr, close))}?"
    for fields in homes.values():
        if field in fields:
            return f"it belongs {fields[field]} (is a brace missing or misplaced?)"
    return f"the fields known here are: {', '.join(homes[block]) or 'none'}"
