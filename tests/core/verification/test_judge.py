"""The rules of judgement."""

from __future__ import annotations

import numpy as np
import pytest

from twinquant.verification import (
    Accumulator,
    allowed_difference,
    judge_integers,
    judge_values,
    largest_difference,
    overflow_note,
)

EXACT = np.zeros(())


def float32(*values):
    return np.array(values, np.float32)


def test_outputs_must_be_equal_where_the_sum_of_magnitudes_is_below_two_to_the_24():
    accumulator = Accumulator(np.zeros((1, 2)), np.array([[2.0**24 - 1, 2.0**24]]))
    allowed = allowed_difference(accumulator, float32(0.5))
    assert allowed[0, 0] == 0
    assert allowed[0, 1] == pytest.approx(1e-6 * 2**24 * 0.5, rel=1e-12)


def test_the_allowed_difference_follows_the_scale_of_each_channel():
    accumulator = Accumulator(np.zeros((1, 2, 1)), np.full((1, 2, 1), 1e8))
    allowed = allowed_difference(accumulator, float32(1.0, 4.0).reshape(1, 2, 1))
    assert allowed.reshape(-1).tolist() == pytest.approx([100.0, 400.0])


def test_without_a_magnitude_everything_must_be_equal():
    assert allowed_difference(Accumulator(np.zeros((3, 3)), None), float32(1.0)) == 0


def test_the_smallest_step_of_float32_is_a_disagreement_where_equality_is_demanded():
    one = float32(1.0, 2.0)
    other = np.nextafter(one, np.float32(9))
    judgement = judge_values("the output", one, other, EXACT)
    assert "2 of 2 values differ" in judgement.problem
    assert judgement.difference == 2.0**-22
    assert judgement.tolerance == 0


def test_negative_zero_equals_zero():
    assert judge_values("the output", float32(-0.0), float32(0.0), EXACT).problem is None


def test_equal_infinities_and_nans_agree():
    values = float32(np.inf, -np.inf, np.nan)
    assert judge_values("the output", values, values.copy(), EXACT).problem is None


@pytest.mark.parametrize("other", [np.nan, np.inf, -np.inf])
def test_a_number_never_agrees_with_a_nan_or_an_infinity(other):
    judgement = judge_values("the output", float32(1.0), float32(other), np.array([1e30]))
    assert judgement.problem is not None
    assert judgement.difference == np.inf


def test_a_tolerance_that_is_not_a_number_allows_nothing():
    assert judge_values("the output", float32(1.0), float32(2.0), np.array([np.nan])).problem is not None


def test_a_difference_within_its_tolerance_is_reported_but_is_no_problem():
    judgement = judge_values("the output", float32(1.0, 5.0), float32(1.5, 5.0), np.array([0.5, 0.0]))
    assert judgement.problem is None
    assert (judgement.difference, judgement.tolerance) == (0.5, 0.5)


def test_a_problem_names_the_place_and_both_values():
    problem = judge_values("the output", float32(1, 2, 3).reshape(1, 3), float32(1, 2, 7).reshape(1, 3), EXACT).problem
    assert "at (0, 2) the deploy twin has 3.0, the fake-quant twin 7.0" in problem


def test_other_shapes_disagree_even_if_they_would_broadcast():
    assert "shape (1, 2)" in judge_values("the output", np.zeros((1, 2)), np.zeros((2, 2)), EXACT).problem


def test_identical_integers_agree():
    assert judge_integers("q", np.array([1, -2], np.int8), np.array([1.0, -2.0], np.float32)) is None


def test_one_other_integer_disagrees_and_is_shown_with_its_place():
    problem = judge_integers("q", np.array([[1, -2]], np.int8), np.array([[1.0, -3.0]], np.float32))
    assert problem == "q: 1 of 2 integers differ; at (0, 1) the deploy twin has -2, the fake-quant twin -3"


def test_integers_of_other_shapes_disagree():
    assert "shape (2,)" in judge_integers("q", np.zeros(2), np.zeros((2, 1)))


@pytest.mark.parametrize(("largest", "noted"), [(2**31 - 1, False), (2**31, True), (-(2**31), True)])
def test_an_accumulator_beyond_int32_is_noted(largest, noted):
    assert (overflow_note(Accumulator(np.array([0.0, largest]), None)) is not None) == noted


def test_the_largest_difference_of_empty_arrays_is_zero():
    assert largest_difference(np.zeros((0, 3)), np.zeros((0, 3))) == 0.0


@pytest.mark.parametrize(("one", "other", "expected"), [(3.0, 3.5, 0.5), (np.nan, np.nan, 0.0), (1.0, np.nan, np.inf)])
def test_a_single_number_is_compared_like_any_array(one, other, expected):
    assert largest_difference(np.array(one, np.float32), np.array(other, np.float32)) == expected
