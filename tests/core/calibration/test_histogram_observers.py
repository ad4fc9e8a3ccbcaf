"""minmax, percentile, entropy and mse against their definitions, written out over all values."""

from __future__ import annotations

import numpy as np
import pytest

from twinquant.calibration import ObserverOptions, make_observer
from twinquant.calibration.entropy import divergences


def calibrated(values, **options):
    observer = make_observer(ObserverOptions(**options))
    for batch in np.array_split(np.asarray(values, np.float32).reshape(-1), 5):
        observer.observe(batch)
    assert not observer.end_pass()
    return observer.factors()


def test_minmax_represents_the_smallest_and_the_largest_value():
    factors = calibrated([-1.0, 0.25, 4.1], algorithm="minmax")
    assert factors.scale == np.float32(5.1 / 255)
    assert factors.offset == -78  # 1.0 / 0.02 = 50 steps above -128


def test_minmax_keeps_zero_in_the_range_of_values_far_from_it():
    assert calibrated([10.0, 25.5], algorithm="minmax").scale == np.float32(0.1)
    assert calibrated([-10.0, -25.5], algorithm="minmax").offset == 127


def test_symmetric_minmax_uses_the_larger_side():
    assert calibrated([-1.0, 12.7], algorithm="minmax", asymmetric=False).scale == pytest.approx(0.1, rel=1e-6)
    assert calibrated([-12.8, 1.0], algorithm="minmax", asymmetric=False).scale == pytest.approx(0.1, rel=1e-6)


@pytest.mark.parametrize("percentile", [0.9, 0.99, 0.999])
def test_percentile_leaves_out_half_of_the_share_on_each_side(percentile):
    values = np.random.default_rng(1).normal(0.3, 1.0, 40_000).astype(np.float32)
    low, high = np.quantile(values, [(1 - percentile) / 2, (1 + percentile) / 2], method="inverted_cdf")
    # A limit is the outer edge of a bin, and at least 2^15 bins hold the range.
    bin_width = (values.max() - values.min()) / 2**15
    scale = calibrated(values, algorithm="percentile", percentile=percentile).scale
    assert (high - low) / 255 <= scale * (1 + 1e-6) <= (high - low + 3 * bin_width) / 255


@pytest.mark.parametrize("percentile", [0.9, 0.999])
def test_symmetric_percentile_leaves_out_a_share_of_the_magnitudes(percentile):
    values = np.random.default_rng(2).normal(0.3, 1.0, 40_000).astype(np.float32)
    limit = np.quantile(np.abs(values), percentile, method="inverted_cdf")
    bin_width = (values.max() - values.min()) / 2**15
    scale = calibrated(values, algorithm="percentile", percentile=percentile, asymmetric=False).scale
    assert limit / 128 <= scale * (1 + 1e-6) <= (limit + 2 * bin_width) / 127


def test_percentile_1_represents_every_value():
    values = np.random.default_rng(3).standard_cauchy(1000).astype(np.float32)
    whole = calibrated(values, algorithm="minmax")
    assert calibrated(values, algorithm="percentile", percentile=1.0) == whole


def divergence_by_definition(counts, bins, levels):
    """KL(P, Q) for the threshold behind `bins` bins, as in the loops of the published method."""
    sliced = np.array(counts[:bins], float)
    reference = sliced.copy()
    reference[-1] += sum(counts[bins:])
    merged = bins // levels
    expanded = np.zeros(bins)
    for level in range(levels):
        start = level * merged
        stop = bins if level == levels - 1 else start + merged
        filled = reference[start:stop] != 0
        if filled.any():
            expanded[start:stop][filled] = sliced[start:stop].sum() / filled.sum()
    if sliced.sum() == 0:
        return np.inf
    p, q = reference / reference.sum(), expanded / expanded.sum()
    if np.any((p > 0) & (q == 0)):
        return np.inf
    where = p > 0
    return float((p[where] * np.log(p[where] / q[where])).sum())


@pytest.mark.parametrize("levels", [4, 8, 16])
@pytest.mark.parametrize("kind", ["smooth", "sparse", "one peak", "empty start"])
def test_the_divergence_is_that_of_the_loops(kind, levels):
    generator = np.random.default_rng(4)
    kinds = {
        "smooth": (1000 * np.exp(-np.arange(100) / 15)).astype(np.int64),
        "sparse": generator.integers(0, 2, 100) * generator.integers(0, 50, 100),
        "one peak": np.bincount([99, 0, 0], minlength=100),
        "empty start": np.bincount([70] * 5 + [90, 99], minlength=100),
    }
    counts = kinds[kind]
    expected = [divergence_by_definition(counts.tolist(), bins, levels) for bins in range(levels, 101)]
    np.testing.assert_allclose(divergences(counts, levels), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["normal", "relu", "long tail", "digits"])
def test_entropy_clips_at_the_threshold_of_the_loops(kind):
    generator = np.random.default_rng(6)
    normal = generator.standard_normal(20_000)
    kinds = {
        "normal": np.abs(normal),
        "relu": np.maximum(normal, 0.0),
        "long tail": generator.exponential(size=20_000),
        "digits": generator.integers(0, 17, 20_000) / 16.0 * (normal > 0.0),
    }
    # The largest value makes the bins 1/256 wide, in all 1920 of them.
    values = np.append(kinds[kind].clip(max=7.4), 7.4999).astype(np.float32)
    counts = np.histogram(values.astype(np.float64), bins=1920, range=(0.0, 7.5))[0].tolist()
    counts[0] = counts[1]
    losses = [divergence_by_definition(counts, bins, levels=8) for bins in range(8, 1921)]
    limit = min((8 + int(np.argmin(losses))) / 256, float(values.max()))
    assert calibrated(values, algorithm="entropy", num_bits=4).scale == np.float32(limit / 15)


def test_the_zeros_that_a_relu_makes_do_not_move_the_entropy_threshold():
    values = np.random.default_rng(7).exponential(size=30_000)
    sparse = np.append(values, np.zeros(90_000))
    assert calibrated(sparse, algorithm="entropy") == calibrated(values, algorithm="entropy")


def test_entropy_cuts_a_long_tail():
    values = np.append(np.random.default_rng(5).standard_normal(100_000), 60.0)
    assert calibrated(values, algorithm="entropy").scale < 0.25 * calibrated(values, algorithm="minmax").scale


def test_entropy_keeps_evenly_spread_values():
    values = np.random.default_rng(6).uniform(-1.0, 1.0, 200_000)
    assert calibrated(values, algorithm="entropy").scale > 0.9 * calibrated(values, algorithm="minmax").scale


def test_entropy_with_16_bits_keeps_everything():
    values = np.random.default_rng(7).standard_normal(5000)
    assert calibrated(values, algorithm="entropy", num_bits=16) == calibrated(values, algorithm="minmax", num_bits=16)


@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("num_bits", [4, 8])
@pytest.mark.parametrize("kind", ["normal", "relu", "heavy tailed"])
def test_mse_loses_no_more_than_the_best_threshold(kind, num_bits, asymmetric):
    generator = np.random.default_rng(8)
    normal = generator.standard_normal(30_000)
    kinds = {"normal": normal, "relu": np.maximum(normal, 0.0), "heavy tailed": generator.standard_t(3, 30_000)}
    values = kinds[kind].astype(np.float32).astype(np.float64)
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    largest = max(-low, high)

    def scale_of(limit):
        ends = max(low, -limit), min(high, limit)
        if asymmetric:
            return (ends[1] - ends[0]) / (2**num_bits - 1)
        half = 2 ** (num_bits - 1)
        return ends[1] / (half - 1) if ends[1] >= -ends[0] else -ends[0] / half

    limits = largest * np.arange(256, 0, -1) / 256
    scales = np.array([scale_of(limit) for limit in limits])

    def loss(limit, scale):
        clipped = np.clip(values, max(low, -limit), min(high, limit))
        return np.mean((np.round(clipped / scale) * scale - values) ** 2)

    losses = [loss(limit, scale) for limit, scale in zip(limits, scales, strict=True)]
    found = calibrated(values, algorithm="mse", num_bits=num_bits, asymmetric=asymmetric).scale
    nearest = int(np.argmin(np.abs(scales / found - 1)))
    assert scales[nearest] == pytest.approx(found, rel=1e-6)
    assert losses[nearest] <= min(losses) * 1.01
