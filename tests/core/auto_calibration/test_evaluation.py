"""Comparing layers, and what a user has to provide."""

from __future__ import annotations

import numpy as np
import pytest

from twinquant.calibration.evaluation import ModelEvaluator, choose_similarity, cosine_similarity
from twinquant.errors import ArgumentError


def test_the_cosine_is_that_of_the_angle_between_the_arrays():
    # (3, 4) and (4, 3): (12 + 12) / (5 * 5)
    assert cosine_similarity(np.array([[3.0], [4.0]]), np.array([[4.0], [3.0]])) == pytest.approx(0.96, abs=1e-15)


def test_the_cosine_does_not_overflow_in_float16():
    big = np.full(1000, 6e4, np.float16)
    assert cosine_similarity(big, big) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize(("second", "expected"), [([0.0, 0.0], 1.0), ([1.0, 0.0], 0.0)])
def test_the_cosine_with_zeros_is_defined(second, expected):
    assert cosine_similarity(np.zeros(2), np.array(second)) == expected


def test_arrays_of_different_shapes_are_not_compared():
    with pytest.raises(ArgumentError, match=r"\(2,\) and \(3,\)"):
        cosine_similarity(np.zeros(2), np.zeros(3))


def test_the_vendors_name_means_the_cosine():
    assert choose_similarity("CosineSimilarity") is cosine_similarity


def test_an_object_with_the_vendors_method_compares():
    class Difference:
        def compare(self, original, quantized):
            return -float(abs(original - quantized).max())

    assert choose_similarity(Difference())(np.array([1.0]), np.array([3.0])) == -2.0


class Unmade:
    def compare(self, original, quantized):
        return 1.0


@pytest.mark.parametrize("sensitivity", ["cosine", 3, Unmade])
def test_anything_else_is_no_similarity(sensitivity):
    with pytest.raises(ArgumentError, match="sensitivity: must be 'CosineSimilarity'"):
        choose_similarity(sensitivity)


def test_an_evaluator_without_all_three_methods_cannot_be_made():
    class Half(ModelEvaluator):
        def calibration(self, modified_model_file):
            pass

    with pytest.raises(TypeError, match="evaluate"):
        Half()


@pytest.mark.parametrize("found", [None, "0.9", [0.5, 0.6], 1j, {}])
def test_a_sensitivity_that_returns_no_number_is_an_error_that_shows_what_it_was(found):
    similarity = choose_similarity(lambda first, second: found)
    with pytest.raises(ArgumentError, match=r"sensitivity: must return a number for two arrays.*got"):
        similarity(np.ones(2), np.ones(2))


@pytest.mark.parametrize("found", [0.5, np.float32(0.5), np.array([0.5])])
def test_a_sensitivity_may_return_any_kind_of_number(found):
    assert choose_similarity(lambda first, second: found)(np.ones(2), np.ones(2)) == 0.5
