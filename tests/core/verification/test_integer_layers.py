"""The exact integer layers, against loops written out here."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from twinquant.verification import Window, convolve, convolve_transposed, multiply


def int8(random, *shape):
    return random.integers(-128, 128, shape).astype(np.int8)


def convolve_by_loops(x, weight, window):
    """Every output is a sum, in Python integers, of products of the kernel with the input it reaches."""
    out_each, in_each = weight.shape[0] // window.groups, weight.shape[1]
    result = np.zeros((x.shape[0], weight.shape[0], *window.out_shape), object)
    for n, c, *place in product(*map(range, result.shape)):
        first = c // out_each * in_each
        for k, *tap in product(range(in_each), *map(range, weight.shape[2:])):
            at = [
                o * s + t * d - p
                for o, s, t, d, p in zip(place, window.strides, tap, window.dilations, window.pads_begin, strict=True)
            ]
            if all(0 <= a < size for a, size in zip(at, x.shape[2:], strict=True)):
                result[(n, c, *place)] += int(x[(n, first + k, *at)]) * int(weight[(c, k, *tap)])
    return result


def convolve_transposed_by_loops(x, weight, window):
    """Every input adds its product with the kernel to the outputs it reaches."""
    in_each, out_each = weight.shape[0] // window.groups, weight.shape[1]
    result = np.zeros((x.shape[0], out_each * window.groups, *window.out_shape), object)
    for n, c, *place in product(*map(range, x.shape)):
        for k, *tap in product(range(out_each), *map(range, weight.shape[2:])):
            at = [
                i * s + t * d - p
                for i, s, t, d, p in zip(place, window.strides, tap, window.dilations, window.pads_begin, strict=True)
            ]
            if all(0 <= a < size for a, size in zip(at, window.out_shape, strict=True)):
                result[(n, c // in_each * out_each + k, *at)] += int(x[(n, c, *place)]) * int(weight[(c, k, *tap)])
    return result


WINDOWS = {
    "one axis": ((7,), Window((2,), (1,), (1,), (4,)), (3,)),
    "two axes, uneven pads": ((5, 6), Window((1, 2), (1, 1), (1, 0), (5, 3)), (2, 3)),
    "two axes, dilated": ((6, 6), Window((1, 1), (2, 2), (2, 2), (6, 6)), (3, 3)),
    "three axes": ((3, 4, 3), Window((1, 1, 2), (1, 1, 1), (0, 1, 1), (2, 4, 2)), (2, 3, 3)),
    "pads wider than the kernel": ((3,), Window((1,), (1,), (4,), (11,)), (2,)),
}


def grouped(window, groups):
    return Window(window.strides, window.dilations, window.pads_begin, window.out_shape, groups)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("case", WINDOWS)
def test_a_convolution_equals_the_sum_written_as_loops(case, groups):
    spatial, window, kernel = WINDOWS[case]
    random = np.random.default_rng(1)
    x, weight = int8(random, 2, 4, *spatial), int8(random, 4, 4 // groups, *kernel)
    bias = random.integers(-1000, 1000, 4).astype(np.int32)

    got = convolve(x.astype(np.float32), weight, bias, grouped(window, groups)).total

    expected = convolve_by_loops(x, weight, grouped(window, groups)) + bias.reshape(4, *[1] * len(spatial))
    assert (got == expected.astype(np.float64)).all()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("case", WINDOWS)
def test_a_transposed_convolution_equals_the_sum_written_as_loops(case, groups):
    spatial, window, kernel = WINDOWS[case]
    random = np.random.default_rng(2)
    x, weight = int8(random, 2, 4, *spatial), int8(random, 4, 3, *kernel)
    bias = random.integers(-1000, 1000, 3 * groups).astype(np.int32)

    got = convolve_transposed(x.astype(np.float32), weight, bias, grouped(window, groups)).total

    expected = convolve_transposed_by_loops(x, weight, grouped(window, groups))
    assert (got == (expected + bias.reshape(-1, *[1] * len(spatial))).astype(np.float64)).all()


@pytest.mark.parametrize("shape", [(6,), (3, 6), (2, 3, 6)])
def test_a_matrix_product_takes_inputs_of_any_rank(shape):
    random = np.random.default_rng(3)
    x, weight = int8(random, *shape), int8(random, 6, 5)
    got = multiply(x.astype(np.float32), weight, None).total
    assert got.shape == (*shape[:-1], 5)
    assert (got == x.astype(np.int64) @ weight.astype(np.int64)).all()


def test_a_wide_matrix_is_multiplied_in_blocks_of_columns_that_fit_together():
    random = np.random.default_rng(4)
    x, weight = int8(random, 3, 2048), int8(random, 2048, 5000)
    bias = random.integers(-(2**30), 2**30, 5000).astype(np.int32)
    got = multiply(x.astype(np.float32), weight, bias)
    expected = x.astype(np.float64) @ weight.astype(np.float64) + bias
    assert (got.total == expected).all()
    assert got.magnitude.shape == expected.shape


def test_sums_that_float32_cannot_hold_are_exact():
    x = np.full((1, 4097), 32767, np.int16)
    weight = np.full((4097, 1), 127, np.int8)
    total = multiply(x.astype(np.float32), weight, np.array([1], np.int32)).total
    assert int(total[0, 0]) == 4097 * 32767 * 127 + 1


def test_the_magnitude_is_left_out_where_float32_is_exact_in_any_order():
    x, weight = np.full((1, 1000), 100, np.float32), np.full((1000, 1), 127, np.int8)
    assert 1000 * 100 * 127 < 2**24
    assert multiply(x, weight, None).magnitude is None


def test_the_magnitude_adds_up_absolute_products_and_the_absolute_bias():
    x = np.array([[200000, -200000]], np.float32)
    weight = np.array([[127, -3], [127, 4]], np.int8)
    magnitude = multiply(x, weight, np.array([-5_000_000, 7], np.int32)).magnitude
    assert magnitude.tolist() == [[200000 * 127 * 2 + 5_000_000, 200000 * 7 + 7]]


def test_the_lowest_int8_weight_counts_with_its_true_magnitude():
    x, weight = np.full((1, 2), 65536, np.float32), np.full((2, 1), -128, np.int8)
    result = multiply(x, weight, None)
    assert result.total.tolist() == [[-(2**24)]]
    assert result.magnitude.tolist() == [[2**24]]
