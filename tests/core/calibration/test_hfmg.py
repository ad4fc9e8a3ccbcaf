"""HFMG against its definition, written out step by step."""

from __future__ import annotations

import math

import numpy as np
import pytest

from twinquant.calibration import ObserverOptions, make_observer
from twinquant.calibration.hfmg_search import best_range, ranges_of_search, uniform_density_losses


def ranges_by_definition(counts):
    size, total = len(counts), sum(counts)
    step = max(1, math.ceil(total / 100_000))
    left, right, noted = 0, size - 1, []
    while right - left > math.ceil(size / 4):
        left_bins = right_bins = seen = 0
        while seen < step and left + left_bins < size:
            seen += counts[left + left_bins]
            left_bins += 1
        seen = 0
        while seen < step and right - right_bins >= 0:
            seen += counts[right - right_bins]
            right_bins += 1
        if right_bins >= left_bins:
            right -= right_bins
        else:
            left += left_bins
        if left <= right:
            noted.append((left, right))
    return noted


def loss_by_definition(counts, left, right, levels):
    """Bin by bin, destination bin by destination bin: the integral of the squared distance to its centre."""
    width = (right - left + 1) / levels
    total = 0.0
    for index, count in enumerate(counts):
        begin, end = index - left, index - left + 1
        first = min(max(math.floor(begin / width), 0), levels - 1)
        last = min(max(math.floor(end / width), 0), levels - 1)
        for bin_ in range(first, last + 1):
            centre = (bin_ + 0.5) * width
            start = begin if bin_ == first else bin_ * width
            stop = end if bin_ == last else (bin_ + 1) * width
            total += count * ((stop - centre) ** 3 - (start - centre) ** 3) / 3
    return total


def by_definition(values, options):
    low, high = float(values.min()), float(values.max())
    bins = options.num_of_bins
    counts, _ = np.histogram(values.astype(np.float64), bins=bins, range=(low, high))
    noted = ranges_by_definition(counts.tolist())
    losses = uniform_density_losses(counts, noted, 2**options.num_bits)
    left, right = noted[int(np.argmin(losses))]
    width = (high - low) / bins
    clip_low, clip_high = min(low + left * width, 0.0), max(low + (right + 1) * width, 0.0)
    if options.asymmetric:
        scale = (clip_high - clip_low) / (2**options.num_bits - 1)
        return scale, int(np.round(-(2 ** (options.num_bits - 1)) - clip_low / scale))
    if clip_high >= -clip_low:
        return clip_high / (2 ** (options.num_bits - 1) - 1), 0
    return -clip_low / 2 ** (options.num_bits - 1), 0


def calibrated(values, options):
    observer = make_observer(options)
    for _ in range(2):
        for batch in np.array_split(values, 3):
            observer.observe(batch)
        if not observer.end_pass():
            return observer
    raise AssertionError("more than two passes")


def histograms():
    generator = np.random.default_rng(7)
    shapes = {
        "normal": np.histogram(generator.standard_normal(50_000), 256)[0],
        "skewed": np.histogram(generator.exponential(size=500), 256)[0],
        "many values": np.histogram(generator.standard_normal(400_000), 256)[0] * 100,
        "sparse": np.bincount(generator.integers(0, 256, 6), minlength=256),
        "two peaks": np.bincount([0] * 500 + [255] * 700, minlength=256),
    }
    return [pytest.param(counts.astype(np.int64), id=name) for name, counts in shapes.items()]


every_histogram = pytest.mark.parametrize("counts", histograms())


@every_histogram
def test_the_search_passes_through_the_ranges_of_the_definition(counts):
    assert ranges_of_search(counts) == ranges_by_definition(counts.tolist())


@every_histogram
@pytest.mark.parametrize("levels", [16, 256, 1024])
def test_the_loss_is_the_integral_over_all_destination_bins(counts, levels):
    ranges = [(0, 255), (3, 200), (100, 170), (0, 64)]
    expected = [loss_by_definition(counts.tolist(), *ends, levels) for ends in ranges]
    np.testing.assert_allclose(uniform_density_losses(counts, ranges, levels), expected, rtol=1e-9)


@every_histogram
@pytest.mark.parametrize("num_bits", [4, 8])
def test_the_best_range_has_the_smallest_loss_of_all_that_were_noted(counts, num_bits):
    ranges = ranges_by_definition(counts.tolist()) or [(0, 255)]
    losses = [loss_by_definition(counts.tolist(), *ends, 2**num_bits) for ends in ranges]
    found = ranges.index(best_range(counts, num_bits))
    assert losses[found] <= min(losses) * (1 + 1e-9)


@pytest.mark.parametrize("num_bits", [4, 8, 16])
@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("bins", [1024, 4096])
@pytest.mark.parametrize("kind", ["normal", "relu", "skewed", "negative"])
def test_the_factors_of_the_definition_are_found(kind, bins, asymmetric, num_bits):
    generator = np.random.default_rng(11)
    normal = generator.standard_normal(20_000)
    skewed = generator.exponential(size=20_000)
    kinds = {"normal": normal, "relu": np.maximum(normal, 0), "skewed": skewed - 0.5, "negative": -1.0 - skewed}
    values = kinds[kind].astype(np.float32)
    options = ObserverOptions("hfmg", num_bits, asymmetric, num_of_bins=bins)
    scale, offset = by_definition(values, options)
    factors = calibrated(values, options).factors()
    assert factors.scale == pytest.approx(scale, rel=1e-6)
    assert factors.offset == offset


def test_a_constant_activation_needs_one_pass_and_keeps_its_value():
    observer = calibrated(np.full(50, 2.55, np.float32), ObserverOptions("hfmg"))
    assert observer.passes == 1
    assert observer.factors().scale == pytest.approx(0.01, rel=1e-6)
    assert observer.factors().offset == -128


def test_an_activation_of_two_values_keeps_both():
    factors = calibrated(np.array([0.0, 5.1] * 40, np.float32), ObserverOptions("hfmg")).factors()
    assert factors.scale == pytest.approx(5.1 / 255, rel=1e-3)
