"""What is written reads back to the same records, with protobuf's parser too."""

import dataclasses
import errno
import logging
import os
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from hypothesis import given, settings
from hypothesis import strategies as st

from twinquant.errors import OutputWriteError
from twinquant.records import (
    Dialect,
    KvCacheFactors,
    LayerRecord,
    RecordSet,
    format_records,
    parse_record_file,
    parse_record_text,
    write_record_file,
)
from twinquant.records.schema import KV_CACHE_FIELDS, LAYER_FIELDS, Kind, record_file_message

CONV = LayerRecord(
    "conv1",
    scale_d=0.5,
    offset_d=-3,
    scale_w=np.float32([0.1, 1e-5]),
    offset_w=np.int32([0, 0]),
    act_type="INT8",
    skip_fusion=False,
    channels=3,
)


def record_set(*records, **kwargs):
    return RecordSet({record.key: record for record in records}, **kwargs)


def test_a_record_is_written_as_the_field_s_tools_print_it():
    assert format_records(record_set(CONV)) == (
        "record {\n"
        '  key: "conv1"\n'
        "  value {\n"
        "    scale_d: 0.5\n"
        "    offset_d: -3\n"
        "    scale_w: 0.1\n"
        "    scale_w: 1e-05\n"
        "    offset_w: 0\n"
        "    offset_w: 0\n"
        "    skip_fusion: false\n"
        '    act_type: "INT8"\n'
        "    channels: 3\n"
        "  }\n"
        "}\n"
    )


def test_the_factors_come_first_and_then_what_the_dialect_knows_in_its_order():
    (caffe, onnx) = (
        [
            line.split(":")[0].strip()
            for line in format_records(record_set(CONV), dialect=dialect).splitlines()
            if ":" in line
        ]
        for dialect in (Dialect.CAFFE, Dialect.ONNX)
    )

    factors = ["key", "scale_d", "offset_d", "scale_w", "scale_w", "offset_w", "offset_w"]
    assert caffe == [*factors, "channels", "skip_fusion", "act_type"]
    assert onnx == [*factors, "skip_fusion", "act_type", "channels"]


def test_a_named_dialect_warns_of_the_fields_that_its_readers_refuse(caplog):
    with caplog.at_level(logging.WARNING):
        text = format_records(record_set(CONV, LayerRecord("kv", kv_cache=KvCacheFactors())), dialect=Dialect.ONNX)

    (warning,) = caplog.records
    assert "channels, kv_cache_value" in warning.getMessage()
    assert "skip_fusion" not in warning.getMessage()
    assert "channels: 3" in text


def test_writing_without_a_named_dialect_warns_of_nothing(caplog):
    format_records(record_set(CONV))

    assert not caplog.records


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.0, "1"),
        (0.1, "0.1"),
        (1e-5, "1e-05"),
        (3.4028235e38, "3.4028235e+38"),
        (1e-45, "1e-45"),
        (2.0**24, "16777216"),
        (0.0013812194, "0.0013812194"),
        (float("inf"), "inf"),
        (float("-inf"), "-inf"),
        (float("nan"), "nan"),
        (-0.0, "-0"),
    ],
)
def test_a_float_is_the_shortest_text_of_its_float32(value, text):
    assert f"scale_d: {text}\n" in format_records(record_set(LayerRecord("a", scale_d=value)))


def test_the_text_of_a_float_does_not_depend_on_print_options():
    with np.printoptions(precision=2, legacy="1.13"):
        assert "scale_w: 0.12345679\n" in format_records(record_set(LayerRecord("a", scale_w=np.float32([0.12345679]))))


def test_every_kind_of_float_reads_back_bit_by_bit():
    bits = np.random.default_rng(3).integers(0, 2**32, 20_000, dtype=np.uint32)
    powers = np.arange(255, dtype=np.uint32) << 23
    values = np.concatenate([bits, powers, powers[1:] - 1, powers + 1]).view(np.float32)
    values = values[np.isfinite(values)]

    (record,) = parse_record_text(format_records(record_set(LayerRecord("a", scale_w=values))))

    np.testing.assert_array_equal(record.scale_w.view(np.uint32), values.view(np.uint32))


def test_infinity_and_nan_read_back():
    values = np.float32([np.inf, -np.inf, np.nan])

    (record,) = parse_record_text(format_records(record_set(LayerRecord("a", scale_w=values, scale_d=float("inf")))))

    np.testing.assert_array_equal(record.scale_w, values)
    assert record.scale_d == float("inf")


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
ONE = {
    Kind.FLOAT: st.floats(width=32, allow_nan=False),
    Kind.INT32: st.integers(-(2**31), 2**31 - 1),
    Kind.UINT32: st.integers(0, 2**32 - 1),
    Kind.BOOL: st.booleans(),
    Kind.STRING: NAMES,
}
DTYPES = {Kind.FLOAT: np.float32, Kind.INT32: np.int32, Kind.UINT32: np.int64}


def field_values(spec):
    if spec.repeated:
        return st.lists(ONE[spec.kind], max_size=5).map(lambda values: np.array(values, DTYPES[spec.kind]))
    return st.none() | ONE[spec.kind]


@st.composite
def layer_records(draw):
    kv_cache = st.none() | st.builds(KvCacheFactors, **{spec.name: field_values(spec) for spec in KV_CACHE_FIELDS})
    fields = {spec.name: draw(field_values(spec)) for spec in LAYER_FIELDS}
    return LayerRecord(draw(NAMES.filter(bool)), **fields, kv_cache=draw(kv_cache))


RECORD_SETS = st.builds(
    lambda records, dialect, prune_records: record_set(*records, dialect=dialect, prune_records=tuple(prune_records)),
    st.lists(layer_records(), min_size=1, max_size=3),
    st.sampled_from(Dialect),
    st.lists(st.sampled_from(["prune_record {\n  a: '}' # }\n}", "prune_record { b < c: [1] > }"]), max_size=2),
)


def contents(record):
    """Everything that a record says, comparable, -0.0 and dtypes included; the line is the file's."""
    flat = {field.name: getattr(record, field.name) for field in dataclasses.fields(record) if field.name != "line"}
    if flat["kv_cache"] is not None:
        flat |= {f"kv_cache.{spec.name}": getattr(flat["kv_cache"], spec.name) for spec in KV_CACHE_FIELDS}
        flat["kv_cache"] = True
    return {
        name: (value.dtype.str, value.tobytes()) if isinstance(value, np.ndarray) else repr(value)
        for name, value in flat.items()
    }


@settings(derandomize=True, deadline=None, max_examples=80)
@given(RECORD_SETS)
def test_write_and_read_lose_nothing(records):
    again = parse_record_text(format_records(records), dialect=records.dialect)

    assert [contents(record) for record in again] == [contents(record) for record in records]
    assert again.prune_records == records.prune_records
    assert format_records(again) == format_records(records)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(RECORD_SETS)
def test_protobuf_reads_the_keys_and_types_that_were_written(records):
    message = text_format.Parse(format_records(dataclasses.replace(records, prune_records=())), record_file_message()())

    assert [record.key for record in message.record] == list(records.records)
    assert [record.value.dst_type for record in message.record] == [record.dst_type or "" for record in records]
    assert [list(record.value.scale_w) for record in message.record] == [record.scale_w.tolist() for record in records]


def test_a_key_value_cache_entry_is_written_without_a_value_block():
    record = LayerRecord("k", has_value=False, kv_cache=KvCacheFactors(np.float32([0.5]), np.int32([1])))

    assert format_records(record_set(record)) == (
        'record {\n  key: "k"\n  kv_cache_value {\n    scale: 0.5\n    offset: 1\n  }\n}\n'
    )


def test_a_file_is_written_whole_and_alone(tmp_path):
    path = tmp_path / "record.txt"
    path.write_text("old")

    write_record_file(record_set(CONV), path)

    assert path.read_text(encoding="utf-8") == format_records(record_set(CONV))
    assert list(tmp_path.iterdir()) == [path]
    assert contents(*parse_record_file(path)) == contents(CONV)


@pytest.mark.parametrize(("owner", "step"), [(os, "open"), (Path, "replace")], ids=["open", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, owner, step):
    path = tmp_path / "record.txt"
    path.write_text("old")

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, fail)
        with pytest.raises(OutputWriteError, match=r"record\.txt.*No space left on device"):
            write_record_file(record_set(CONV), path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_folder_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(OutputWriteError, match=r"record\.txt"):
        write_record_file(record_set(CONV), tmp_path / "none" / "record.txt")


def test_a_folder_in_the_place_of_the_file_stays(tmp_path):
    (tmp_path / "record.txt").mkdir()

    with pytest.raises(OutputWriteError, match=r"record\.txt"):
        write_record_file(record_set(CONV), tmp_path / "record.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["record.txt"]
