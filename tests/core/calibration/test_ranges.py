"""The scale, the offset and the errors of a range, worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from twinquant.numerics import activation_offset, activation_scale, clipped_grid_errors, symmetric_scale


@pytest.mark.parametrize(("num_bits", "steps"), [(4, 15), (8, 255), (16, 65535)])
def test_the_range_is_divided_into_all_steps_of_the_type(num_bits, steps):
    assert activation_scale(-1.0, 2.0, num_bits) == 3.0 / steps


def test_a_scale_that_is_too_small_is_1():
    assert activation_scale(0.0, 255 * 1.18e-7, 8) == 1.0
    assert activation_scale(0.0, 255 * 1.2e-7, 8) == pytest.approx(1.2e-7)
    assert symmetric_scale(-128 * 1.18e-7, 0.0, 8) == 1.0


def test_the_larger_side_decides_the_symmetric_scale_and_the_positive_one_wins_a_tie():
    assert symmetric_scale(-1.0, 127.0, 8) == 1.0
    assert symmetric_scale(-128.0, 127.0, 8) == 1.0
    assert symmetric_scale(-127.0, 127.0, 8) == 1.0


@pytest.mark.parametrize(
    ("low", "scale", "offset"),
    [(0.0, 0.1, -128), (-255.0, 1.0, 127), (-0.5, 1.0, -128), (-1.5, 1.0, -126), (-2.5, 1.0, -126), (-900.0, 1.0, 127)],
)
def test_the_offset_rounds_ties_to_even_and_saturates(low, scale, offset):
    assert activation_offset(low, scale, 8) == offset


def test_errors_count_clipping_and_rounding():
    values = np.array([-3.0, -0.5, 0.25, 1.5, 2.0, 9.0])
    errors = np.empty_like(values)
    clipped_grid_errors(values, 1.0, -1.0, 2.0, errors)
    assert errors.tolist() == [4.0, 0.25, 0.0625, 0.25, 0.0, 49.0]
