"""Rounding, saturating and packing, against NumPy written out, loops over single values, and ONNX Runtime."""

from __future__ import annotations

import itertools
import struct
from fractions import Fraction

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from twinquant.numerics import (
    BLOCK_ELEMENTS,
    BiasRangeError,
    dequant_scale,
    float16_scale,
    integer_range,
    pack_dequant_parameter,
    pack_int4,
    pack_int4_along,
    quantize_activation,
    quantize_bias,
    quantize_weight,
    reciprocal_scale,
    rectangular_blocks,
    round_weight_in_place,
    scale_for_shape,
    storage_dtype,
    unpack_dequant_parameter,
    unpack_int4,
    unpack_int4_along,
)


def bits_of(value):
    """The float32 bits of a number, by the C library."""
    return struct.unpack("<I", struct.pack("<f", value))[0]


@pytest.mark.parametrize(
    ("bits", "low", "high"), [(4, -8, 7), (6, -32, 31), (7, -64, 63), (8, -128, 127), (16, -32768, 32767)]
)
def test_integer_ranges_are_those_of_twos_complement(bits, low, high):
    assert integer_range(bits) == (low, high)
    assert np.dtype(storage_dtype(bits)) == (np.int16 if bits == 16 else np.int8)


# Activations.


def test_the_reciprocal_is_the_float32_nearest_to_the_exact_one():
    for scale in (0.1, 0.031, 3.0, 1e-30, 7e12):
        exact = Fraction(1) / Fraction(float(np.float32(scale)))
        got = reciprocal_scale(scale)
        neighbours = [np.nextafter(got, np.float32(0)), np.nextafter(got, np.float32(np.inf))]
        assert got.dtype == np.float32
        assert all(abs(Fraction(float(got)) - exact) <= abs(Fraction(float(other)) - exact) for other in neighbours)


@pytest.mark.parametrize(
    ("x", "offset", "expected"),
    [
        (0.5, 0, 0),
        (1.5, 0, 2),
        (2.5, 0, 2),
        (-0.5, 0, 0),
        (-1.5, 0, -2),
        (0.5, 1, 1),  # rounded before the addition: 0 + 1; rounding after it gives 2
        (1.5, 1, 3),
        (126.5, 0, 126),
        (127.5, 0, 127),
        (-128.5, 0, -128),
        (-129.0, 0, -128),
        (300.0, -128, 127),
        (1.0, -128, -127),
        (np.inf, 5, 127),
        (-np.inf, 5, -128),
    ],
)
def test_activations_are_rounded_to_even_then_shifted_then_saturated(x, offset, expected):
    got = quantize_activation(np.float32([x]), 1.0, offset, 8)
    assert got.dtype == np.int8
    assert got.tolist() == [expected]


def test_activations_are_multiplied_by_the_float32_reciprocal():
    scale, rng = np.float32(0.0371), np.random.default_rng(5)
    ties = (np.arange(-120, 120) + 0.5).astype(np.float32) * scale
    x = np.concatenate([ties, np.nextafter(ties, np.float32(9)), rng.normal(size=2000).astype(np.float32)])
    reciprocal = np.float32(1) / scale
    expected = [max(-128, min(127, int(np.rint(np.float32(value * reciprocal))) + 3)) for value in x]
    assert quantize_activation(x, float(reciprocal), 3, 8).tolist() == expected
    assert expected != [max(-128, min(127, int(np.rint(value / scale)) + 3)) for value in x]


@pytest.mark.parametrize("bits", [4, 8, 16])
def test_activations_of_many_blocks_equal_the_operators_of_onnx_runtime(bits):
    rng = np.random.default_rng(6)
    x = (rng.normal(size=(3, BLOCK_ELEMENTS - 5)) * 2 ** (bits - 1)).astype(np.float32)
    scale, offset = np.float32(0.73), -3
    low, high = -(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1
    constants = {"s": np.float32(1) / scale, "o": offset, "lo": low, "hi": high}
    nodes = [
        helper.make_node("Mul", ["x", "s"], ["a"]),
        helper.make_node("Round", ["a"], ["b"]),
        helper.make_node("Add", ["b", "o"], ["c"]),
        helper.make_node("Clip", ["c", "lo", "hi"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, x.shape)],
        [helper.make_tensor_value_info("y", 1, x.shape)],
        [onnx.numpy_helper.from_array(np.array(v, np.float32), k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(None, {"x": x})
    got = quantize_activation(x, float(constants["s"]), offset, bits)
    assert got.dtype == (np.int16 if bits == 16 else np.int8)
    np.testing.assert_array_equal(got, expected.astype(np.int32))


def test_activations_that_overflow_saturate_without_a_warning():
    x = np.float32([3e38, -3e38, 1e30])
    assert quantize_activation(x, 1e10, 0, 8).tolist() == [127, -128, 127]
    assert quantize_activation(np.float64([1e300, -1e300]), 1.0, 0, 8).tolist() == [127, -128]


def test_nan_activations_become_the_lowest_value():
    assert quantize_activation(np.float32([np.nan, 1]), 1.0, 0, 8).tolist() == [-128, 1]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_activations_of_any_float_type_and_layout_are_taken(dtype):
    x = np.arange(-12, 12).reshape(2, 3, 4).astype(dtype)
    assert (
        quantize_activation(x.transpose(2, 0, 1), 0.5, 1, 8).tolist()
        == (np.rint(x.transpose(2, 0, 1) * 0.5) + 1).astype(int).tolist()
    )
    assert quantize_activation(np.array(3, dtype), 1.0, 0, 8).shape == ()
    assert quantize_activation(np.empty((0, 3), dtype), 1.0, 0, 8).shape == (0, 3)


def test_the_activation_that_is_given_is_not_changed():
    x = np.float32([0.4, 5.6])
    quantize_activation(x, 2.0, 1, 8)
    assert x.tolist() == np.float32([0.4, 5.6]).tolist()


# Weights.


@pytest.mark.parametrize("bits", [4, 6, 7, 8])
def test_weights_are_divided_rounded_to_even_and_saturated(bits):
    rng = np.random.default_rng(bits)
    w = rng.normal(size=(5, 7, 3)).astype(np.float32)
    scale = rng.uniform(0.01, 0.05, size=(5, 1, 1)).astype(np.float32)
    expected = np.empty(w.shape, int)
    for index in itertools.product(*map(range, w.shape)):
        quotient = np.float32(w[index]) / np.float32(scale[index[0], 0, 0])
        expected[index] = max(-(2 ** (bits - 1)), min(2 ** (bits - 1) - 1, int(np.rint(quotient))))
    got = quantize_weight(w, scale, bits)
    assert got.dtype == np.int8
    np.testing.assert_array_equal(got, expected)


def test_a_true_division_differs_from_a_reciprocal_and_is_used():
    scale = np.float32(0.013)
    w = (np.arange(-127, 127) + np.float32(0.5)) * scale
    w = np.concatenate([w, np.nextafter(w, np.float32(9)), np.nextafter(w, np.float32(-9))]).astype(np.float32)
    expected = np.clip(np.rint(w / scale), -128, 127).astype(np.int8)
    assert (expected != np.clip(np.rint(w * (np.float32(1) / scale)), -128, 127)).any()
    np.testing.assert_array_equal(quantize_weight(w, scale.reshape(1), 8), expected)


@pytest.mark.parametrize("shape", [(3, 2 * BLOCK_ELEMENTS // 3, 2), (BLOCK_ELEMENTS + 1,), (2, 3, 4, 5, 6), (), (0, 4)])
def test_weights_of_any_shape_are_quantized_block_by_block(shape):
    w = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    scale = np.full((1,) * len(shape), 0.02, np.float32)
    np.testing.assert_array_equal(quantize_weight(w, scale, 8), np.clip(np.rint(w / np.float32(0.02)), -128, 127))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, BLOCK_ELEMENTS + 3])
def test_nan_and_infinity_in_a_weight_are_found_in_every_block(value, place):
    w = np.zeros(BLOCK_ELEMENTS + 9, np.float32)
    w[place] = value
    with pytest.raises(ValueError, match=r"NaN or infinity"):
        quantize_weight(w, np.float32([1]), 8)


def test_a_float64_weight_that_leaves_float32_is_refused_without_a_warning():
    with pytest.raises(ValueError, match=r"NaN or infinity"):
        quantize_weight(np.array([1e300]), np.float32([1]), 8)


def test_a_quotient_that_overflows_saturates_without_a_warning():
    assert quantize_weight(np.float32([3e38, -3e38]), np.float32([1e-10]), 8).tolist() == [127, -128]


def test_rounded_weights_have_no_negative_zero():
    block = np.float32([-0.2, 0.2, -0.0])
    assert round_weight_in_place(block, np.float32([1]), 8)
    assert block.tolist() == [0, 0, 0]
    assert not np.signbit(block).any()


def test_an_empty_block_is_fine():
    assert round_weight_in_place(np.empty(0, np.float32), np.float32([1]), 8)


@pytest.mark.parametrize(("ndim", "axis", "shape"), [(4, 0, (3, 1, 1, 1)), (4, 1, (1, 3, 1, 1)), (2, -1, (1, 3))])
def test_a_scale_is_shaped_to_broadcast_along_its_axis(ndim, axis, shape):
    assert scale_for_shape(np.float32([1, 2, 3]), ndim, axis).shape == shape


# Biases.


def test_biases_are_divided_and_rounded_to_even():
    bias = np.float32([0.5, 1.5, -2.5, 7])
    got = quantize_bias(bias, np.float32([1, 1, 1, 0.5]))
    assert got.dtype == np.int32
    assert got.tolist() == [0, 2, -2, 14]


def test_biases_of_any_shape_take_one_scale():
    for shape in ((), (1,), (3, 1), (1, 4), (3, 4)):
        bias = np.full(shape, 0.75, np.float32)
        got = quantize_bias(bias, np.float32([0.25]))
        assert got.shape == shape
        assert (got == 3).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_biases_of_other_types_are_widened_or_narrowed_first(dtype):
    bias = np.array([0.1, 100.3], dtype)
    expected = np.rint(bias.astype(np.float32) / np.float32(0.007)).astype(np.int32)
    np.testing.assert_array_equal(quantize_bias(bias, np.float32([0.007])), expected)


@pytest.mark.parametrize("value", [-2147483648.0, 2147483520.0])
def test_the_largest_float32_inside_int32_are_accepted(value):
    assert quantize_bias(np.float32([value]), np.float32([1])).tolist() == [int(value)]


@pytest.mark.parametrize("value", [2147483648.0, -2147483904.0, np.nan, np.inf, -np.inf, 1e38])
def test_biases_outside_int32_are_refused_with_their_place(value):
    bias = np.float32([1, 2, value, value])
    with pytest.raises(BiasRangeError) as caught:
        quantize_bias(bias, np.float32([1]))
    assert caught.value.index == 2
    assert repr(caught.value.bias) == repr(float(np.float32(value)))
    assert repr(caught.value.value) == repr(float(np.float32(value)))


def test_a_bias_that_overflows_is_refused_without_a_warning():
    with pytest.raises(BiasRangeError):
        quantize_bias(np.float32([3e38]), np.float32([1e-30]))
    with pytest.raises(BiasRangeError):
        quantize_bias(np.float64([1e300]), np.float32([1]))


# Dequantization.


def test_the_dequantization_scale_is_the_product_rounded_to_float32():
    scale_w, scale_d = np.float32([0.1, 0.003, 7]), 0.037
    got = dequant_scale(scale_w, scale_d)
    assert got.dtype == np.float32
    for product, one in zip(got, scale_w, strict=True):
        exact = float(one) * float(np.float32(scale_d))  # exact in float64: 24 + 24 bits
        assert product == np.float32(exact)


def test_a_product_that_overflows_or_vanishes_gives_no_warning():
    got = dequant_scale(np.float32([1e30, 1e-30]), 1e30), dequant_scale(np.float32([1e-30]), 1e-30)
    assert got[0][0] == np.inf
    assert got[1][0] == 0


def test_float16_precision_cuts_13_bits_of_the_mantissa():
    scale = np.float32([0.1, 1.0, 3.14159, 1e-6, 2.0**-126])
    for cut, value in zip(float16_scale(scale), scale, strict=True):
        assert bits_of(cut) == bits_of(value) & 0xFFFFE000
    assert float16_scale(scale).dtype == np.float32


def test_a_parameter_holds_the_float32_bits_in_its_low_half():
    scale = np.float32([0.1, 1.0, 3.5e-12])
    got = pack_dequant_parameter(scale)
    assert got.dtype == np.uint64
    assert [int(value) for value in got] == [bits_of(value) for value in scale]


def test_a_parameter_is_taken_apart_into_scale_shift_and_offset():
    parameter = np.array([bits_of(0.25) | (5 << 32) | (0xFD << 40)], np.uint64)
    scale, shift, offset = unpack_dequant_parameter(parameter)
    assert (scale.tolist(), shift.tolist(), offset.tolist()) == ([0.25], [5], [-3])
    assert (scale.dtype, shift.dtype, offset.dtype) == (np.float32, np.uint8, np.int8)


def test_scales_that_are_slices_are_packed_by_their_values():
    scale = np.float32([1, 2, 3, 4])[::2]
    assert [int(v) for v in pack_dequant_parameter(scale)] == [bits_of(1), bits_of(3)]
    assert float16_scale(scale).tolist() == [1, 3]


# 4-bit values.


def test_the_even_index_is_the_low_half():
    assert pack_int4_along(np.int8([1, 2, -1, 7, -8, 0]), 0).view(np.uint8).tolist() == [0x21, 0x7F, 0x08]
    assert pack_int4(np.int8([1, 2, -1])).tolist() == [0x21, 0x0F]


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -3])
def test_pairs_are_packed_along_any_axis_and_unpacked_again(axis):
    values = np.random.default_rng(2).integers(-8, 8, size=(4, 6, 2)).astype(np.int8)
    packed = pack_int4_along(values, axis)
    moved, packed_moved = np.moveaxis(values, axis, 0), np.moveaxis(packed, axis, 0)
    for i in range(len(packed_moved)):
        expected = (moved[2 * i].astype(int) & 15) | ((moved[2 * i + 1].astype(int) & 15) << 4)
        np.testing.assert_array_equal(packed_moved[i].astype(int) & 255, expected)
    np.testing.assert_array_equal(unpack_int4_along(packed, axis), values, strict=True)


@given(st.lists(st.integers(-8, 7), max_size=33))
def test_memory_order_packing_is_that_of_onnx(values):
    array = np.array(values, np.int8)
    packed = pack_int4(array)
    assert packed.size == (len(values) + 1) // 2
    tensor = onnx.TensorProto(data_type=onnx.TensorProto.INT4, dims=[len(values)], raw_data=packed.tobytes())
    assert onnx.numpy_helper.to_array(tensor).astype(np.int8).tolist() == values
    assert unpack_int4(packed, len(values)).tolist() == values


# Blocks.


@settings(max_examples=300, deadline=None)
@given(
    shape=st.lists(st.integers(0, 7), max_size=5).map(tuple),
    max_elements=st.integers(1, 40),
    data=st.data(),
)
def test_blocks_follow_each_other_in_memory_and_keep_pairs_together(shape, max_elements, data):
    axis = data.draw(st.none() | st.integers(0, len(shape) - 1)) if shape else None
    if axis is not None and shape[axis] % 2:
        shape = (*shape[:axis], shape[axis] + 1, *shape[axis + 1 :])
    array = np.arange(int(np.prod(shape, dtype=int))).reshape(shape)
    step = 1 if axis is None else 2
    pieces = [array[where] for where in rectangular_blocks(shape, max_elements, step, axis)]
    flat = np.concatenate([piece.reshape(-1) for piece in pieces]) if pieces else np.empty(0, int)
    np.testing.assert_array_equal(flat, array.reshape(-1))
    for piece in pieces:
        assert piece.ndim == array.ndim
        if axis is not None:
            assert piece.shape[axis] % 2 == 0
        else:
            assert piece.size <= max_elements


def test_blocks_of_a_big_array_are_near_their_limit():
    sizes = [np.empty((1000, 1000), np.int8)[where].size for where in rectangular_blocks((1000, 1000))]
    assert max(sizes) <= BLOCK_ELEMENTS
    assert len(sizes) <= 2 * 1000 * 1000 // BLOCK_ELEMENTS
