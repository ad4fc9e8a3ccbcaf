"""What records say: presence, order, repetition, dialects."""

import numpy as np
import pytest

from twinquant.records import Dialect, parse_record_file, parse_record_text


def in_value(*lines):
    return 'record {\n  key: "conv"\n  value {\n' + "".join(f"    {line}\n" for line in lines) + "  }\n}\n"


def test_a_file_gives_its_records_in_order_with_their_factors(tmp_path):
    path = tmp_path / "record.txt"
    path.write_text(
        'record {\n  key: "conv1"\n  value {\n    scale_d: 0.5\n    offset_d: -128\n    scale_w: 0.25\n'
        "    scale_w: 0.125\n    offset_w: 0\n    offset_w: 0\n  }\n}\n"
        'record {\n  key: "fc"\n  value {\n  }\n}\n'
    )

    records = parse_record_file(path)

    assert list(records.records) == ["conv1", "fc"]
    assert records.path == path
    conv1, fc = records
    assert (conv1.scale_d, conv1.offset_d, conv1.line, fc.line) == (0.5, -128, 1, 12)
    np.testing.assert_array_equal(conv1.scale_w, np.array([0.25, 0.125], np.float32), strict=True)
    np.testing.assert_array_equal(conv1.offset_w, np.array([0, 0], np.int32), strict=True)


def test_an_empty_value_block_is_a_record_without_factors():
    (record,) = parse_record_text(in_value())

    assert record.has_value
    assert record.scale_d is None
    assert record.scale_w.shape == (0,)


def test_an_absent_factor_differs_from_a_zero():
    (record,) = parse_record_text(in_value("scale_d: 0", "offset_d: 0"))

    assert (record.scale_d, record.offset_d, record.scale_h, record.offset_h) == (0.0, 0, None, None)


def test_every_field_of_every_dialect_is_read():
    (record,) = parse_record_text(
        in_value(
            "scale_d: 0.5",
            "offset_d: 1",
            "scale_w: 0.25",
            "offset_w: 2",
            "shift_bit: 4294967295",
            "tensor_balance_factor: 1.5",
            "skip_fusion: true",
            'dst_type: "INT8"',
            'act_type: "INT16"',
            'wts_type: "INT4"',
            'fakequant_precision_mode: "FORCE_FP16_QUANT"',
            "scale_h: 0.75",
            "offset_h: 3",
            "scale_r: 2",
            "offset_r: 4",
            "channels: 3",
            "height: 224",
            "width: 225",
            "is_tensor_quantize: false",
            'op_data_type: "FLOAT32"',
            "cluster: -7",
        )
    )

    scalars = {
        name: getattr(record, name)
        for name in (
            "scale_d",
            "offset_d",
            "skip_fusion",
            "dst_type",
            "act_type",
            "wts_type",
            "fakequant_precision_mode",
            "scale_h",
            "offset_h",
            "channels",
            "height",
            "width",
            "is_tensor_quantize",
            "op_data_type",
        )
    }
    assert scalars == {
        "scale_d": 0.5,
        "offset_d": 1,
        "skip_fusion": True,
        "dst_type": "INT8",
        "act_type": "INT16",
        "wts_type": "INT4",
        "fakequant_precision_mode": "FORCE_FP16_QUANT",
        "scale_h": 0.75,
        "offset_h": 3,
        "channels": 3,
        "height": 224,
        "width": 225,
        "is_tensor_quantize": False,
        "op_data_type": "FLOAT32",
    }
    for name, expected in (
        ("scale_w", np.float32([0.25])),
        ("offset_w", np.int32([2])),
        ("shift_bit", np.int64([2**32 - 1])),
        ("tensor_balance_factor", np.float32([1.5])),
        ("scale_r", np.float32([2])),
        ("offset_r", np.int32([4])),
        ("cluster", np.int32([-7])),
    ):
        np.testing.assert_array_equal(getattr(record, name), expected, strict=True, err_msg=name)


def test_a_scalar_is_the_float32_value():
    (record,) = parse_record_text(in_value("scale_d: 0.1"))

    assert record.scale_d == 0.100000001490116119384765625


def test_the_last_value_of_a_repeated_optional_field_wins():
    (record,) = parse_record_text(in_value("scale_d: 1", "scale_d: 2", 'act_type: "INT8"', 'act_type: "INT16"'))

    assert (record.scale_d, record.act_type) == (2.0, "INT16")


def test_two_value_blocks_of_a_record_are_merged():
    text = 'record {\n  key: "a"\n  value {\n    scale_w: 1\n  }\n  value {\n    scale_w: 2\n    scale_d: 3\n  }\n}\n'

    (record,) = parse_record_text(text)

    assert record.scale_w.tolist() == [1, 2]
    assert record.scale_d == 3


def test_the_last_record_of_a_key_wins_in_the_place_of_the_first_and_the_key_is_named():
    text = in_value("scale_d: 1") + in_value("scale_d: 2").replace("conv", "fc") + in_value("scale_d: 3")

    records = parse_record_text(text)

    assert list(records.records) == ["conv", "fc"]
    assert records.records["conv"].scale_d == 3
    assert records.duplicate_keys == ("conv",)
    (warning,) = records.warnings
    assert "record 'conv' occurs more than once" in warning
    assert f"(line {records.records['conv'].line})" in warning


def test_unique_keys_warn_of_nothing():
    records = parse_record_text(in_value())

    assert records.duplicate_keys == ()
    assert records.warnings == ()


def test_a_key_value_cache_entry_needs_no_value_block():
    (record,) = parse_record_text(
        'record {\n  key: "k"\n  kv_cache_value {\n    scale: 0.5\n    scale: 1\n    offset: 2\n  }\n}\n'
    )

    assert not record.has_value
    assert record.kv_cache.scale.tolist() == [0.5, 1]
    assert record.kv_cache.offset.tolist() == [2]


def test_a_layer_without_key_value_cache_has_none():
    (record,) = parse_record_text(in_value())

    assert record.kv_cache is None


PRUNE = 'prune_record {\n  producer { name: "}" attr < x: [1, 2] > } # }\n  anything: 0x1f\n}'


@pytest.mark.parametrize("unusual", ["", "# } {\nrecord { key: 'x' value {} }\n"], ids=["ordinary", "unusual layout"])
def test_prune_records_are_kept_verbatim_and_leave_lines_as_they_are(unusual):
    records = parse_record_text(PRUNE + "\n" + in_value("scale_d: 1") + PRUNE.replace("0x1f", "'é'") + "\n" + unusual)

    assert records.prune_records == (PRUNE, PRUNE.replace("0x1f", "'é'"))
    assert records.records["conv"].line == 5


def test_a_layer_may_be_called_prune_record():
    records = parse_record_text(in_value("scale_d: 1").replace("conv", "prune_record { x }"))

    assert list(records.records) == ["prune_record { x }"]
    assert records.prune_records == ()


def test_a_byte_order_mark_is_skipped(tmp_path):
    path = tmp_path / "record.txt"
    path.write_bytes(b"\xef\xbb\xbf" + in_value("scale_d: 1").encode())

    assert list(parse_record_file(path).records) == ["conv"]


def test_a_key_may_hold_any_character():
    records = parse_record_text(in_value().replace("conv", "层/conv:0 {é} #1 'a'"))

    assert list(records.records) == ["层/conv:0 {é} #1 'a'"]


@pytest.mark.parametrize(
    ("lines", "dialect"),
    [
        (["scale_d: 1", "scale_w: 1"], Dialect.ONNX),
        (["channels: 3", "height: 1", "width: 1", "shift_bit: 0", "skip_fusion: true"], Dialect.CAFFE),
        (["channels: 3", 'act_type: "INT8"'], Dialect.THIRD_PARTY),
        (["is_tensor_quantize: true"], Dialect.ONNX),
        (['op_data_type: "FLOAT32"', "shift_bit: 0"], Dialect.ONNX),
        (["shift_bit: 0"], Dialect.CAFFE),
    ],
)
def test_the_fields_present_tell_the_dialect(lines, dialect):
    assert parse_record_text(in_value(*lines)).dialect is dialect


def test_a_key_value_cache_tells_the_torch_dialect():
    assert parse_record_text('record { key: "k" kv_cache_value { scale: 1 } }').dialect is Dialect.TORCH


def test_a_named_dialect_is_kept():
    assert parse_record_text(in_value("channels: 3"), dialect=Dialect.TORCH).dialect is Dialect.TORCH
