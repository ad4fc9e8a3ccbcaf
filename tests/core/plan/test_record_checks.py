"""Every rule of a record's factors, the message of each, and the order in which they are checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from twinquant.errors import RecordValueError
from twinquant.plan import LayerInfo, LayerKind

WEIGHTED = ["conv", "deconv", "gemm", "matmul", "lstm", "gru"]
EVERY = [*WEIGHTED, "pool"]
RNNS = ["lstm", "gru"]
DENORMAL = float(np.float32(1e-39))  # 1 / 1e-39 is infinite in float32
LEAST = float(np.finfo(np.float32).tiny)


def refused(kit, record, field, message, framework="onnx"):
    with pytest.raises(RecordValueError, match=message) as caught:
        kit.plan(record, framework=framework)
    assert (caught.value.key, caught.value.field) == (record.key, field)
    assert repr(record.key) in str(caught.value)
    assert field in str(caught.value)


def test_messages_name_the_file_the_line_the_key_the_field_and_the_value(kit):
    record = kit.record("conv", scale_d=-0.1, line=7)
    with pytest.raises(RecordValueError) as caught:
        kit.plan(record, path=Path("dir/record.txt"))
    assert str(caught.value).startswith(
        "record file 'dir/record.txt', record 'conv' (line 7), scale_d: must be a finite"
    )
    assert "got -0.1" in str(caught.value)


# Completeness.


@pytest.mark.parametrize("field", ["scale_d", "offset_d", "scale_w", "offset_w"])
@pytest.mark.parametrize("name", EVERY)
def test_every_factor_is_needed(kit, name, field):
    refused(kit, kit.record(name, drop=(field,)), field, "missing.*need.*Calibration has not finished")


@pytest.mark.parametrize("field", ["scale_h", "offset_h", "scale_r", "offset_r"])
@pytest.mark.parametrize("name", RNNS)
def test_an_rnn_needs_the_factors_of_its_hidden_state_too(kit, name, field):
    refused(kit, kit.record(name, drop=(field,)), field, "missing.*need")


@pytest.mark.parametrize("has_value", [True, False])
def test_an_empty_record_is_an_error_and_not_a_skipped_layer(kit, has_value):
    record = kit.record("conv", drop=("scale_d", "offset_d", "scale_w", "offset_w"), has_value=has_value)
    refused(kit, record, "scale_d, offset_d, scale_w, offset_w", "record is empty")


def test_a_present_zero_is_not_absent(kit):
    refused(kit, kit.record("conv", scale_d=0.0), "scale_d", "must be a finite number > 0, got 0.0")
    assert kit.plan(kit.record("conv", offset_d=0)).layers[0].activation.offset == 0


def test_fields_that_only_inform_are_ignored(kit):
    record = kit.record("conv", channels=3, height=224, width=224, op_data_type="float16", skip_fusion=True)
    assert len(kit.plan(record)) == 1


# Lengths.


@pytest.mark.parametrize("name", WEIGHTED)
def test_scales_and_offsets_of_the_weight_are_equally_many(kit, name):
    record = kit.record(name, offset_w=[0] * 5)
    refused(kit, record, "offset_w", "has 5 values, but scale_w has [134]; they must be equally many")


@pytest.mark.parametrize("name", RNNS)
def test_scales_and_offsets_of_the_recurrence_weight_are_equally_many(kit, name):
    refused(kit, kit.record(name, offset_r=[0]), "offset_r", "has 1 value.*scale_r has [34]")


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("conv", (1, 4), (2, 3, 5, 8)),
        ("deconv", (1, 4), (2, 3, 5, 6)),
        ("gemm", (1,), (2, 4, 6)),
        ("matmul", (1,), (2, 4, 6)),
        ("pool", (1,), (2, 4)),
        ("lstm", (4, 20), (1, 3, 5, 40)),
        ("gru", (3, 15), (1, 4, 5, 30)),
    ],
)
def test_the_number_of_weight_scales_is_1_or_that_of_the_layers_channels(kit, name, good, bad):
    for count in good:
        assert kit.plan(kit.record(name, scale_w=[1.0] * count)).layers[0].output.scale.size >= count
    for count in bad:
        refused(kit, kit.record(name, scale_w=[1.0] * count), "scale_w", f"has {count} values.*takes {good[0]}")


@pytest.mark.parametrize(("name", "good", "bad"), [("lstm", (4, 20), (1, 3, 8)), ("gru", (3, 15), (1, 4, 6))])
def test_the_recurrence_weight_has_scales_per_gate_or_per_row(kit, name, good, bad):
    for count in good:
        assert kit.plan(kit.record(name, scale_r=[1.0] * count)).layers[0].recurrence.scale.size == count
    for count in bad:
        refused(kit, kit.record(name, scale_r=[1.0] * count), "scale_r", f"has {count} value")


def test_a_convolution_of_one_channel_has_one_scale(kit):
    one = LayerInfo("conv", "Conv", LayerKind.CONV, activation="x", out_channels=1, in_channels=2)
    with pytest.raises(RecordValueError, match=r"has 2 values.*takes 1$"):
        kit.plan(kit.record("conv", scale_w=[1.0, 1.0]), layers=[one])


@pytest.mark.parametrize("name", ["conv", "deconv", "gemm", "matmul"])
@pytest.mark.parametrize("count", [1, 5, 7])
def test_there_is_one_balance_factor_per_input_channel(kit, name, count):
    record = kit.record(name, tensor_balance_factor=[1.0] * count)
    refused(kit, record, "tensor_balance_factor", f"has {count} value.*6 input channels")


@pytest.mark.parametrize("name", ["pool", *RNNS])
def test_some_layers_take_no_balance_factors(kit, name):
    refused(kit, kit.record(name, tensor_balance_factor=[1.0] * 6), "tensor_balance_factor", "not supported")


# Ranges.


@pytest.mark.parametrize("value", [0.0, -0.0, -1.0, float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    ("name", "field"), [("conv", "scale_d"), ("pool", "scale_d"), ("lstm", "scale_h"), ("gru", "scale_d")]
)
def test_scales_are_finite_and_above_0(kit, name, field, value):
    refused(kit, kit.record(name, **{field: value}), field, f"must be a finite number > 0, got {value}")


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("name", "field", "count"), [("conv", "scale_w", 4), ("lstm", "scale_r", 4), ("gru", "scale_w", 3)]
)
def test_one_bad_scale_of_many_is_named_by_its_position(kit, name, field, count, value):
    scales = [1.0] * count
    scales[2] = value
    refused(kit, kit.record(name, **{field: scales}), field, rf"got {value} \(value 3 of {count}\)")


@pytest.mark.parametrize(
    ("name", "field"), [("conv", "scale_d"), ("conv", "scale_w"), ("lstm", "scale_h"), ("lstm", "scale_r")]
)
def test_a_scale_whose_reciprocal_is_infinite_is_refused(kit, name, field):
    value = [DENORMAL] * (4 if name == "lstm" else 1) if field in ("scale_w", "scale_r") else DENORMAL
    refused(kit, kit.record(name, **{field: value}), field, "1/scale is infinite")


def test_a_denormal_scale_whose_reciprocal_is_finite_is_accepted(kit):
    scale = float(np.float32(5e-39))
    assert np.isfinite(np.float32(1) / np.float32(scale))
    plan = kit.plan(kit.record("conv", scale_d=scale, scale_w=[1e10]))
    assert plan.layers[0].activation.scale == scale


@pytest.mark.parametrize(
    ("fields", "low", "high"),
    [
        ({}, -128, 127),
        ({"act_type": "INT8"}, -128, 127),
        ({"act_type": "INT4"}, -128, 127),
        ({"dst_type": "INT4"}, -128, 127),
        ({"dst_type": "INT8", "act_type": "INT16"}, -128, 127),
        ({"act_type": "INT16"}, -32768, 32767),
    ],
    ids=str,
)
def test_the_activation_offset_is_in_the_range_of_its_type(kit, fields, low, high):
    for good in (low, high):
        assert kit.plan(kit.record("conv", offset_d=good, **fields)).layers[0].activation.offset == good
    for bad in (low - 1, high + 1):
        refused(kit, kit.record("conv", offset_d=bad, **fields), "offset_d", rf"in \[{low}, {high}\].*got {bad}")


@pytest.mark.parametrize(("fields", "low", "high"), [({}, -128, 127), ({"act_type": "INT16"}, -32768, 32767)], ids=str)
@pytest.mark.parametrize("name", RNNS)
def test_the_offset_of_the_hidden_state_is_in_the_range_of_the_activation(kit, name, fields, low, high):
    for good in (low, high):
        assert kit.plan(kit.record(name, offset_h=good, **fields)).layers[0].hidden.offset == good
    for bad in (low - 1, high + 1):
        refused(kit, kit.record(name, offset_h=bad, **fields), "offset_h", rf"in \[{low}, {high}\].*got {bad}")


@pytest.mark.parametrize("value", [1, -1, 127])
@pytest.mark.parametrize(
    ("name", "field", "count"), [("conv", "offset_w", 1), ("gru", "offset_r", 3), ("pool", "offset_w", 1)]
)
def test_weights_have_no_offset(kit, name, field, count, value):
    refused(kit, kit.record(name, **{field: [0] * (count - 1) + [value]}), field, f"must be 0.*got {value}")


@pytest.mark.parametrize("value", [0.5, 2.0, float(np.nextafter(np.float32(1), np.float32(2)))])
def test_a_pool_has_a_weight_scale_of_1(kit, value):
    refused(kit, kit.record("pool", scale_w=[value]), "scale_w", "must be 1")


@pytest.mark.parametrize("value", [2.0**-23, 1.0, 2.0**23])
def test_balance_factors_at_their_limits_are_accepted(kit, value):
    plan = kit.plan(kit.record("conv", tensor_balance_factor=[1.0] * 5 + [value]))
    assert plan.layers[0].activation.balance.tolist() == [1.0] * 5 + [value]


@pytest.mark.parametrize("value", [2.0**-24, 2.0**24, 0.0, -1.0, float("nan"), float("inf")])
def test_balance_factors_outside_their_range_are_refused(kit, value):
    record = kit.record("conv", tensor_balance_factor=[1.0] * 5 + [value])
    refused(kit, record, "tensor_balance_factor", r"in \[2\^-23, 2\^23\], got .* \(value 6 of 6\)")


@pytest.mark.parametrize("factor", [1e30, 1e-30], ids=["overflow", "underflow"])
@pytest.mark.parametrize(
    ("name", "first", "second", "count"), [("conv", "scale_w", "scale_d", 1), ("lstm", "scale_r", "scale_h", 4)]
)
def test_products_of_scales_are_normal_float32_numbers(kit, name, first, second, count, factor):
    refused(
        kit,
        kit.record(name, **{first: [factor] * count, second: factor}),
        first,
        f"{first} \\* {second} must be a normal",
    )


def test_products_at_the_limits_are_accepted_and_denormal_ones_are_not(kit):
    assert kit.plan(kit.record("gemm", scale_w=[LEAST * 2], scale_d=0.5)).layers[0].output.scale.tolist() == [LEAST]
    refused(kit, kit.record("gemm", scale_w=[LEAST], scale_d=0.5), "scale_w", "normal float32")


# Types.


@pytest.mark.parametrize("value", ["INT16", "INT6", "int8", "", "FLOAT"])
def test_dst_type_is_int8_or_int4(kit, value):
    refused(kit, kit.record("conv", dst_type=value), "dst_type", f"one of INT8, INT4|one of INT4, INT8.*got {value!r}")


@pytest.mark.parametrize("value", ["INT6", "INT7", "UINT8", "int8", ""])
def test_act_type_is_int4_int8_or_int16(kit, value):
    refused(kit, kit.record("conv", act_type=value), "act_type", f"one of INT4, INT8, INT16, got {value!r}")


@pytest.mark.parametrize("value", ["INT16", "INT5", "int8", ""])
def test_wts_type_is_int4_int6_int7_or_int8(kit, value):
    refused(kit, kit.record("conv", wts_type=value), "wts_type", f"one of INT4, INT6, INT7, INT8, got {value!r}")


@pytest.mark.parametrize("value", ["FP16", "default", ""])
def test_the_precision_mode_is_one_of_two(kit, value):
    record = kit.record("conv", fakequant_precision_mode=value)
    refused(kit, record, "fakequant_precision_mode", f"one of DEFAULT, FORCE_FP16_QUANT, got {value!r}")


@pytest.mark.parametrize(
    ("fields", "act_bits", "wts_bits", "packed"),
    [
        ({}, 8, 8, False),
        ({"act_type": "INT16"}, 16, 8, False),
        ({"act_type": "INT4", "wts_type": "INT6"}, 4, 6, False),
        ({"wts_type": "INT7"}, 8, 7, False),
        ({"wts_type": "INT4"}, 8, 4, True),
        ({"act_type": "INT4", "wts_type": "INT4"}, 4, 4, True),
        ({"dst_type": "INT8"}, 8, 8, False),
        ({"dst_type": "INT4"}, 4, 4, False),
        ({"dst_type": "INT4", "wts_type": "INT4"}, 4, 4, True),
        ({"dst_type": "INT4", "act_type": "INT16", "wts_type": "INT8"}, 4, 4, False),
        ({"dst_type": "INT8", "act_type": "INT4", "wts_type": "INT6"}, 8, 8, False),
    ],
    ids=str,
)
def test_dst_type_decides_both_else_each_type_its_own(kit, fields, act_bits, wts_bits, packed):
    (layer,) = kit.plan(kit.record("conv", **fields))
    assert (layer.activation.num_bits, layer.weight.num_bits, layer.weight.packed) == (act_bits, wts_bits, packed)


def test_dst_type_int8_contradicts_wts_type_int4(kit):
    refused(kit, kit.record("conv", dst_type="INT8", wts_type="INT4"), "wts_type", "contradicts dst_type INT8")


@pytest.mark.parametrize("value", ["INT4", "INT6", "INT7"])
def test_a_pool_has_no_weight_type_but_int8(kit, value):
    refused(kit, kit.record("pool", wts_type=value), "wts_type", f"must be INT8.*got {value!r}")


@pytest.mark.parametrize("fields", [{"wts_type": "INT8"}, {"dst_type": "INT4"}, {"act_type": "INT16"}], ids=str)
def test_a_pool_takes_every_activation_type(kit, fields):
    assert kit.plan(kit.record("pool", **fields)).layers[0].weight is None


@pytest.mark.parametrize("field", ["act_type", "dst_type"])
@pytest.mark.parametrize("name", RNNS)
def test_an_rnn_takes_no_4_bit_activations(kit, name, field):
    refused(kit, kit.record(name, **{field: "INT4"}), field, "INT8 or INT16 activations, got INT4")


@pytest.mark.parametrize("name", WEIGHTED)
def test_packed_weights_need_an_even_number_of_input_channels(kit, name):
    from dataclasses import replace

    odd = replace(kit.layers[name], packed_lengths=(6, 5) if name in RNNS else (5,))
    with pytest.raises(RecordValueError, match=r"wts_type: INT4.*odd number of them \(5\)"):
        kit.plan(kit.record(name, wts_type="INT4"), layers=[odd])
    if name not in RNNS:
        assert len(kit.plan(kit.record(name, dst_type="INT4"), layers=[odd])) == 1


# Frameworks.


@pytest.mark.parametrize("values", [[0], [0, 0, 0, 0], [3]])
@pytest.mark.parametrize("framework", ["onnx", "torch"])
def test_shifts_are_refused_outside_caffe(kit, framework, values):
    record = kit.record("conv", shift_bit=values)
    refused(kit, record, "shift_bit", f"not supported for {framework} models", framework)


def test_caffe_accepts_shifts_of_0_and_refuses_others(kit):
    assert len(kit.plan(kit.record("conv", shift_bit=[0, 0]), framework="caffe")) == 1
    refused(kit, kit.record("conv", shift_bit=[0, 3]), "shift_bit", "must be 0, got 3", "caffe")


def test_a_caffe_pool_has_activation_factors_only(kit):
    plan = kit.plan(kit.record("pool", drop=("scale_w", "offset_w")), framework="caffe")
    assert plan.layers[0].output.scale.tolist() == [0.5]
    for field, other in (("scale_w", "offset_w"), ("offset_w", "scale_w")):
        refused(kit, kit.record("pool", drop=(other,)), field, "have no weight; remove", "caffe")


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"act_type": "INT16"}, "act_type"),
        ({"wts_type": "INT6"}, "wts_type"),
        ({"dst_type": "INT4"}, "dst_type"),
        ({"tensor_balance_factor": [1.0] * 6}, "tensor_balance_factor"),
        ({"scale_h": 0.1}, "scale_h"),
        ({"offset_r": [0]}, "offset_r"),
    ],
    ids=str,
)
def test_caffe_takes_int8_only(kit, fields, field):
    refused(kit, kit.record("conv", **fields), field, field, "caffe")


# Order.


@pytest.mark.parametrize(
    ("fields", "drop", "field"),
    [
        ({"offset_w": [0, 0], "scale_w": [-1.0]}, ("scale_d",), "scale_d"),
        ({"offset_w": [0, 0], "scale_w": [-1.0], "scale_d": -1.0}, (), "offset_w"),
        ({"scale_w": [-1.0], "act_type": "INT5"}, (), "scale_w"),
        ({"scale_d": -1.0, "offset_d": 999, "scale_w": [-1.0], "act_type": "INT5"}, (), "scale_d"),
    ],
)
def test_completeness_comes_before_lengths_before_ranges_before_types(kit, fields, drop, field):
    with pytest.raises(RecordValueError) as caught:
        kit.plan(kit.record("conv", drop=drop, **fields))
    assert caught.value.field == field
