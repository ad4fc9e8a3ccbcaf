"""Which record belongs to which layer, and what the plan decides."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from twinquant.errors import RecordFileError, RecordLayerError
from twinquant.plan import LayerInfo
from twinquant.records import KvCacheFactors


def refused(kit, record, message, **settings):
    with pytest.raises(RecordLayerError, match=message) as caught:
        kit.plan(record, **settings)
    assert caught.value.key == record.key
    assert repr(record.key) in str(caught.value)


def renamed(kit, record, key):
    return replace(record, key=key)


def test_layers_are_planned_in_graph_order_and_the_rest_is_skipped_with_its_reason(kit):
    layers = [
        LayerInfo("r", "Relu"),
        kit.layers["pool"],
        replace(kit.layers["gemm"], refusal="its weight is not constant"),
        kit.layers["conv"],
        kit.layers["matmul"],
    ]
    plan = kit.plan(kit.record("conv"), kit.record("pool"), layers=layers)
    assert [layer.name for layer in plan] == ["pool", "conv"]
    assert len(plan) == 2
    assert plan.framework == "onnx"
    assert [(node.name, node.op_type, node.reason) for node in plan.skipped] == [
        ("r", "Relu", "operators of type Relu are not quantized"),
        ("gemm", "Gemm", "its weight is not constant"),
        ("matmul", "MatMul", "no record names it"),
    ]


def test_an_unknown_layer_is_refused_with_close_names(kit):
    refused(kit, renamed(kit, kit.record("conv"), "convv"), "no layer of this name; did you mean 'conv'")


def test_an_unknown_layer_unlike_any_other_asks_for_the_right_record(kit):
    refused(kit, renamed(kit, kit.record("conv"), "zzzzzzzz"), "record of another model")


def test_the_line_of_the_record_is_named(kit):
    refused(kit, replace(kit.record("conv"), key="zzz", line=12), r"'zzz' \(line 12\)")


def test_a_name_that_two_nodes_have_is_ambiguous_only_if_a_record_names_it(kit):
    layers = [LayerInfo("twin", "Relu"), replace(kit.layers["conv"], name="twin"), kit.layers["gemm"]]
    refused(kit, renamed(kit, kit.record("conv"), "twin"), "2 nodes of the graph have this name", layers=layers)
    assert [layer.name for layer in kit.plan(kit.record("gemm"), layers=layers)] == ["gemm"]


def test_a_layer_of_a_type_that_is_never_quantized_is_refused(kit):
    layers = [LayerInfo("conv", "Relu")]
    refused(kit, kit.record("conv"), "Relu layer cannot be quantized: operators of type Relu", layers=layers)


def test_a_layer_that_cannot_be_quantized_is_refused_with_its_reason(kit):
    layers = [replace(kit.layers["conv"], refusal="its weight is a fish")]
    refused(kit, kit.record("conv"), "its weight is a fish; remove the record", layers=layers)


def test_a_layer_is_checked_before_its_factors(kit):
    layers = [replace(kit.layers["conv"], refusal="its weight is a fish")]
    refused(kit, kit.record("conv", scale_d=-1.0), "fish", layers=layers)


def test_a_key_of_a_layers_input_is_about_a_tensor(kit):
    refused(kit, renamed(kit, kit.record("conv"), "conv:0"), "single tensor.*save_model")


def test_a_key_with_a_colon_means_the_node_of_exactly_that_name(kit):
    layers = [kit.layers["conv"], replace(kit.layers["gemm"], name="conv:0")]
    assert [layer.name for layer in kit.plan(renamed(kit, kit.record("gemm"), "conv:0"), layers=layers)] == ["conv:0"]


def test_a_key_with_a_colon_behind_no_layers_name_is_unknown(kit):
    refused(kit, renamed(kit, kit.record("conv"), "fish:0"), "no layer of this name")


@pytest.mark.parametrize("key", ["conv", "conv:0", "somewhere"])
def test_a_record_that_is_marked_as_a_tensors_is_refused(kit, key):
    refused(kit, replace(kit.record("conv"), key=key, is_tensor_quantize=True), "about a.* tensor.*save_model")


@pytest.mark.parametrize("key", ["conv", "cache"])
def test_a_record_of_a_key_value_cache_is_refused(kit, key):
    record = replace(kit.record("conv"), key=key, kv_cache=KvCacheFactors(np.float32([1])))
    refused(kit, record, "key/value cache.*save_model does not apply")


def test_duplicate_keys_are_a_warning_that_names_them(kit):
    plan = kit.plan(kit.record("conv"), duplicate_keys=("conv",))
    assert len(plan.warnings) == 1
    assert "'conv'" in plan.warnings[0]
    assert kit.plan(kit.record("conv")).warnings == ()


def test_the_numbers_of_a_convolution(kit):
    scale_w, scale_d = np.float32([0.1, 0.2, 0.3, 0.4]), float(np.float32(0.7))
    conv = replace(kit.layers["conv"], has_bias=True)
    (layer,) = kit.plan(kit.record("conv", scale_w=scale_w, scale_d=scale_d, offset_d=-9), layers=[conv])
    assert (layer.activation.scale, layer.activation.offset, layer.activation.num_bits) == (scale_d, -9, 8)
    assert (layer.activation.owner, layer.activation.balance) == ("conv", None)
    np.testing.assert_array_equal(layer.weight.scale, scale_w, strict=True)
    np.testing.assert_array_equal(layer.bias.scale, scale_w * np.float32(0.7), strict=True)
    np.testing.assert_array_equal(layer.output.scale, scale_w * np.float32(0.7), strict=True)
    assert (layer.bias.recurrence_scale, layer.bias.cast_to_float, layer.hidden, layer.recurrence) == (None,) * 1 + (
        False,
        None,
        None,
    )


def test_a_layer_without_bias_has_none_in_the_plan(kit):
    assert kit.plan(kit.record("conv")).layers[0].bias is None
    assert kit.plan(kit.record("gemm")).layers[0].bias is not None


@pytest.mark.parametrize(
    ("fields", "cast"), [({}, False), ({"act_type": "INT4"}, True), ({"act_type": "INT16"}, False)]
)
def test_4_bit_activations_cast_the_bias(kit, fields, cast):
    assert kit.plan(kit.record("gemm", **fields)).layers[0].bias.cast_to_float is cast


def test_forced_float16_cuts_the_output_scale_only(kit):
    record = kit.record(
        "gemm", scale_w=[0.1], scale_d=float(np.float32(0.3)), fakequant_precision_mode="FORCE_FP16_QUANT"
    )
    (layer,) = kit.plan(record)
    product = np.float32(0.1) * np.float32(0.3)
    assert layer.bias.scale.tolist() == [product]
    assert layer.output.scale.view(np.uint32).tolist() == [int(product.view(np.uint32)) & 0xFFFFE000]


@pytest.mark.parametrize(("name", "gates"), [("lstm", 4), ("gru", 3)])
@pytest.mark.parametrize("mode", [None, "FORCE_FP16_QUANT"])
def test_the_numbers_of_an_rnn_and_its_output_scale_is_never_cut(kit, name, gates, mode):
    scale_w, scale_r = np.linspace(0.1, 0.4, gates, dtype=np.float32), np.linspace(0.3, 0.7, gates, dtype=np.float32)
    record = kit.record(
        name,
        scale_w=scale_w,
        scale_r=scale_r,
        scale_d=0.5,
        scale_h=float(np.float32(0.3)),
        offset_h=7,
        act_type="INT16",
        wts_type="INT4",
        fakequant_precision_mode=mode,
    )
    (layer,) = kit.plan(record)
    w, r = scale_w * np.float32(0.5), scale_r * np.float32(0.3)
    np.testing.assert_array_equal(layer.output.scale, np.concatenate([w, r]), strict=True)
    np.testing.assert_array_equal(layer.bias.scale, w)
    np.testing.assert_array_equal(layer.bias.recurrence_scale, r)
    assert (layer.hidden.scale, layer.hidden.offset, layer.hidden.num_bits) == (float(np.float32(0.3)), 7, 16)
    assert (layer.recurrence.num_bits, layer.recurrence.packed, layer.weight.packed) == (4, True, True)
    np.testing.assert_array_equal(layer.recurrence.scale, scale_r)


def test_a_pool_is_dequantized_by_its_activation_scale(kit):
    (layer,) = kit.plan(kit.record("pool", scale_d=0.75))
    assert (layer.weight, layer.bias, layer.output.scale.tolist()) == (None, None, [0.75])


# Merging.


def on(kit, tensor, *names):
    return [replace(kit.layers["conv"], name=name, activation=tensor) for name in names]


def owners(kit, layers, changes):
    records = [replace(kit.record("conv", **changes.get(layer.name, {})), key=layer.name) for layer in layers]
    return {layer.name: layer.activation.owner for layer in kit.plan(*reversed(records), layers=layers)}


def test_layers_on_one_tensor_with_equal_factors_share_the_first_ones_node(kit):
    assert owners(kit, on(kit, "x", "a", "b", "c"), {}) == {"a": "a", "b": "a", "c": "a"}


def test_layers_on_different_tensors_share_nothing(kit):
    assert owners(kit, [*on(kit, "x", "a"), *on(kit, "y", "b")], {}) == {"a": "a", "b": "b"}


@pytest.mark.parametrize(
    "changes", [{"act_type": "INT8"}, {"dst_type": "INT8"}, {"wts_type": "INT6"}, {"scale_w": [9.0]}]
)
def test_what_leaves_the_activation_as_it_is_does_not_hinder_sharing(kit, changes):
    assert owners(kit, on(kit, "x", "a", "b"), {"b": changes}) == {"a": "a", "b": "a"}


@pytest.mark.parametrize("changes", [{"act_type": "INT16"}, {"dst_type": "INT4"}, {"offset_d": 4}, {"scale_d": 0.25}])
def test_other_activation_factors_hinder_sharing_and_later_layers_find_the_first(kit, changes):
    assert owners(kit, on(kit, "x", "a", "b", "c"), {"b": changes}) == {"a": "a", "b": "b", "c": "a"}


def test_scales_are_compared_as_float32(kit):
    changes = {"a": {"scale_d": 0.1}, "b": {"scale_d": float(np.float32(0.1))}}
    assert owners(kit, on(kit, "x", "a", "b"), changes) == {"a": "a", "b": "a"}


def test_layers_with_balance_factors_share_nothing(kit):
    balanced = {"tensor_balance_factor": [1.0] * 6}
    assert owners(kit, on(kit, "x", "a", "b", "c", "d"), {"a": balanced, "c": balanced}) == {
        "a": "a",
        "b": "b",
        "c": "c",
        "d": "b",
    }


def test_rnns_share_nothing(kit):
    layers = [kit.layers["lstm"], kit.layers["conv"]]
    plan = kit.plan(kit.record("lstm"), kit.record("conv"), layers=layers)
    assert [layer.activation.owner for layer in plan] == ["lstm", "conv"]
    both = [kit.layers["gru"], replace(kit.layers["gru"], name="gru2")]
    plan = kit.plan(kit.record("gru"), renamed(kit, kit.record("gru"), "gru2"), layers=both)
    assert [layer.activation.owner for layer in plan] == ["gru", "gru2"]


def test_a_pool_shares_with_a_convolution_on_its_tensor(kit):
    layers = [kit.layers["conv"], kit.layers["pool"]]
    plan = kit.plan(kit.record("conv"), kit.record("pool"), layers=layers)
    assert [layer.activation.owner for layer in plan] == ["conv", "conv"]


def test_no_records_at_all_mean_that_calibration_has_not_finished(kit):
    with pytest.raises(RecordFileError, match=r"no record at all.*Calibration has not finished"):
        kit.plan()
