"""Weight scales and balance factors."""

from __future__ import annotations

import re

import numpy as np
import pytest

from twinquant.calibration import ChannelMaxObserver, balance_factors, channel_maxima, weight_scales
from twinquant.errors import ArgumentError, CalibrationError, ModelContentError


def weight_of(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize(("num_bits", "largest", "smallest"), [(8, 127, 128), (7, 63, 64), (6, 31, 32), (4, 7, 8)])
def test_the_larger_side_decides_the_scale(num_bits, largest, smallest):
    weight = np.array([[0.5, -0.25], [0.25, -0.75], [0.5, -0.5]], np.float32)
    expected = np.array([0.5 / largest, 0.75 / smallest, 0.5 / largest], np.float32)
    assert weight_scales(weight, num_bits, 0).tobytes() == expected.tobytes()
    assert weight_scales(weight, num_bits).tobytes() == np.array([0.75 / smallest], np.float32).tobytes()


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_every_channel_has_its_own_scale_along_any_axis(axis):
    weight = weight_of(5, 7, 3)
    channels = np.moveaxis(weight, axis, 0).reshape(weight.shape[axis], -1).astype(np.float64)
    high, low = channels.max(axis=1), channels.min(axis=1)
    expected = np.where(high >= -low, high / 127, -low / 128).astype(np.float32)
    assert weight_scales(weight, 8, axis).tobytes() == expected.tobytes()


def test_weights_of_one_sign_and_weights_of_zero_have_scales():
    weight = np.array([[0.5, 0.25], [-0.5, -0.25], [0.0, 0.0], [1e-8, 0.0]], np.float32)
    expected = np.array([0.5 / 127, 0.5 / 128, 1.0, 1.0], np.float32)
    assert weight_scales(weight, 8, 0).tobytes() == expected.tobytes()


def test_a_weight_larger_than_a_block_is_read_in_pieces_and_gives_the_same_scales():
    weight = weight_of(300, 500)
    sizes = []

    class Recorded:
        shape = weight.shape

        def __getitem__(self, where):
            sizes.append(weight[where].size)
            return weight[where]

    for axis in (0, 1, None):
        assert weight_scales(Recorded(), 8, axis).tobytes() == weight_scales(weight, 8, axis).tobytes()
    assert len(sizes) >= 6
    assert max(sizes) <= 1 << 16


def test_balance_factors_multiply_the_weight_before_its_scales_are_taken():
    weight, factors = weight_of(4, 3, 2, 2), np.array([0.5, 2.0, 1.5], np.float32).reshape(1, 3, 1, 1)
    balanced = weight_scales(weight, 8, 0, factors=factors)
    assert balanced.tobytes() == weight_scales(weight * factors, 8, 0).tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_is_an_error(bad):
    weight = weight_of(3, 4)
    weight[1, 2] = bad
    with pytest.raises(ModelContentError, match="NaN or infinity"):
        weight_scales(weight, 8, 0)


def test_a_weight_too_large_for_a_scale_is_an_error():
    with pytest.raises(ModelContentError, match="the largest that can be represented"):
        weight_scales(np.array([[3e10]], np.float32), 8)


def test_an_empty_weight_is_an_error():
    with pytest.raises(ArgumentError, match="no values"):
        weight_scales(np.zeros((0, 3), np.float32), 8)


def test_the_scale_of_a_channel_of_the_reference_implementation():
    # The first output channel of a convolution; 0.0012173981 is what the reference recorded as its scale_w.
    channel = """0.03895674 0.01947837 -0.10226144 -0.054782916 -0.09982664 0.0657395 0.04504373 -0.11808761 0.107131034
    -0.08765266 -0.04382633 0.13878338 -0.15582696 0.07304388 -0.15582696 -0.08887006 -0.101044044 0.11808761
    0.021913165 -0.08278307 -0.15095736 0.0657395 0.07060909 0.0073043886 -0.04382633 0.03652194 0.15339217
    -0.023130564 0.1302616 0.13878338 0.0633047 0.107131034 -0.01947837 -0.125392 -0.0060869902 0.0"""
    weight = np.array(channel.split(), np.float32).reshape(1, 4, 3, 3)
    assert weight_scales(weight, 8, 0)[0] == np.float32(0.0012173981)


def test_channel_maxima_keep_the_input_channels_of_every_group():
    weight = weight_of(6, 4, 3, 3)  # 2 groups: 3 outputs and 4 inputs each
    maxima = channel_maxima(weight.reshape(2, 3, 4, 3, 3), (0, 2))
    expected = [np.abs(weight[3 * group : 3 * group + 3, channel]).max() for group in (0, 1) for channel in range(4)]
    assert maxima.tolist() == expected


@pytest.mark.parametrize("strength", [0.2, 0.5, 0.8])
def test_the_balance_factor_is_a_quotient_of_powers(strength):
    activation, weight = np.array([4.0, 0.25, 9.0]), np.array([0.5, 2.0, 0.1])
    expected = [a**strength / w ** (1 - strength) for a, w in zip(activation, weight, strict=True)]
    factors = balance_factors(activation, weight, strength)
    assert factors.dtype == np.float32
    np.testing.assert_allclose(factors, expected, rtol=1e-7)


def test_a_channel_without_activations_gets_weights_as_large_as_the_largest_balanced_ones():
    # Balanced weights: sqrt(4 * 0.25) = 1 and sqrt(9 * 0.5) = 2.12; 0.1 becomes as large with 21.2.
    factors = balance_factors(np.array([4.0, 9.0, 0.0]), np.array([0.25, 0.5, 0.1]))
    assert factors[2] == pytest.approx(np.sqrt(4.5) / 0.1, rel=1e-6)


def test_the_factor_of_a_channel_without_activations_is_that_of_the_reference_implementation():
    # Channels 0 to 7 of a transposed convolution; channel 7 has no activation, and the reference recorded 1.4377261.
    activation = np.array([0.30590, 0.33207, 0.37262, 0.19892, 0.41042727, 0.11558, 0.18713, 0.0])
    weight = np.array([0.18276, 0.20198, 0.20402, 0.20339, 0.18633646, 0.20203, 0.19725, 0.19220994])
    assert balance_factors(activation, weight)[7] == pytest.approx(1.4377261, rel=2e-3)


def test_a_channel_without_weights_gets_activations_as_large_as_the_largest_balanced_ones():
    # Balanced activations: 4 / 4 = 1 and 9 / sqrt(18) = 2.12; 30 becomes as small with 14.1.
    factors = balance_factors(np.array([4.0, 9.0, 30.0]), np.array([0.25, 0.5, 0.0]))
    assert 30.0 / factors[2] == pytest.approx(9.0 / np.sqrt(18.0), rel=1e-6)


def test_channels_without_anything_keep_the_factor_1():
    assert balance_factors(np.array([4.0, 0.0]), np.array([1.0, 0.0])).tolist() == [2.0, 1.0]
    assert balance_factors(np.array([0.0, 1.0]), np.array([1.0, 0.0])).tolist() == [1.0, 1.0]


def test_balance_factors_stay_in_the_range_that_records_allow():
    factors = balance_factors(np.array([1e30, 1e-30]), np.array([1e-9, 1e9]))
    assert factors.tolist() == [2.0**23, 2.0**-23]


@pytest.mark.parametrize("strength", [0.1, 0.9])
def test_a_migration_strength_out_of_range_is_an_error(strength):
    with pytest.raises(ArgumentError, match="migration_strength"):
        balance_factors(np.ones(2), np.ones(2), strength)


def test_different_numbers_of_channels_are_an_error():
    with pytest.raises(CalibrationError, match="3 channels of the activation do not match 2"):
        balance_factors(np.ones(3), np.ones(2))


def test_channels_counted_from_the_end_are_those_of_a_batch_with_and_without_its_axis():
    values = np.random.default_rng(4).standard_normal((3, 3, 5)).astype(np.float32)  # as many channels as rows
    unbatched, batched = ChannelMaxObserver(-3), ChannelMaxObserver(-3)
    unbatched.observe(values)
    batched.observe(values[np.newaxis])
    expected = np.abs(values).reshape(3, -1).max(axis=1).tolist()
    assert unbatched.maxima().tolist() == batched.maxima().tolist() == expected


@pytest.mark.parametrize(("shape", "axis"), [((4, 5), -3), ((4,), 1), ((), -1)])
def test_an_activation_without_the_axis_of_its_channels_is_an_error_that_names_its_shape(shape, axis):
    with pytest.raises(CalibrationError, match=re.escape(f"has shape {shape}: no axis {axis}")):
        ChannelMaxObserver(axis).observe(np.ones(shape))


@pytest.mark.parametrize("axis", [1, -1])
def test_channel_maxima_of_activations_do_not_depend_on_batches_or_their_division(axis):
    values = np.random.default_rng(3).standard_normal((12, 5, 4, 5)).astype(np.float32)
    one, other = ChannelMaxObserver(axis), ChannelMaxObserver(axis)
    for batch in (values[:2], values[2:7]):
        one.observe(batch)
    other.observe(values[7:])
    restored = ChannelMaxObserver(axis)
    restored.restore(other.state())
    one.merge(restored)
    assert one.maxima().tolist() == np.abs(np.moveaxis(values, axis, 0)).reshape(5, -1).max(axis=1).tolist()


def test_a_changing_number_of_channels_is_an_error():
    observer = ChannelMaxObserver()
    observer.observe(np.ones((1, 3, 2)))
    with pytest.raises(CalibrationError, match="has 4 channels along axis 1, earlier ones had 3"):
        observer.observe(np.ones((1, 4, 2)))


def test_channel_values_that_are_not_finite_are_an_error():
    with pytest.raises(CalibrationError, match="NaN or infinity"):
        ChannelMaxObserver().observe(np.array([[1.0, np.nan]]))


def test_channel_maxima_of_nothing_are_an_error():
    with pytest.raises(CalibrationError, match="no value was observed"):
        ChannelMaxObserver().maxima()
