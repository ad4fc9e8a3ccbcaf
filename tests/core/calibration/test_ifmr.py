"""IFMR against its definition, written out over all values, and against numbers of the reference implementation."""

from __future__ import annotations

import numpy as np
import pytest

from twinquant.calibration import ObserverOptions, make_observer


def by_definition(values, options):
    """The definition in NumPy; the second result is how much better the best candidate is, relatively."""
    ordered = np.sort(values.astype(np.float64).reshape(-1))
    size = ordered.size

    def rank(percentile):
        return 1 if abs(1 - percentile) < 1.19e-7 else max(1, size - int(percentile * size))

    high = max(ordered[-rank(options.max_percentile)], 0.0)
    low = min(ordered[rank(options.min_percentile) - 1], 0.0)
    losses, scales = [], []
    for factor in np.arange(options.search_range[0], options.search_range[1], options.search_step):
        if options.asymmetric:
            clip_low, clip_high = low, high * factor
            scale = (clip_high - low) / (2**options.num_bits - 1)
        else:
            clip_high = max(high, -low) * factor
            clip_low = -clip_high
            scale = clip_high / (2 ** (options.num_bits - 1) - (1 if high >= -low else 0))
        if scale < 1.19e-7:
            scale = 1.0
        rounded = np.round(np.clip(ordered, clip_low, clip_high) / scale) * scale
        losses.append(np.mean((rounded - ordered) ** 2))
        scales.append(scale)
    best = int(np.argmin(losses))
    offset = int(-np.round(low / scales[best]) - 2 ** (options.num_bits - 1)) if options.asymmetric else 0
    others = [loss for loss, scale in zip(losses, scales, strict=True) if scale != scales[best]]
    gap = (min(others) - losses[best]) / losses[best] if others and losses[best] > 0 else np.inf
    return scales[best], offset, gap


def calibrated(values, options):
    observer = make_observer(options)
    for _ in range(6):
        for batch in np.array_split(values.reshape(-1), 3):
            observer.observe(batch)
        if not observer.end_pass():
            return observer
    raise AssertionError("more than six passes")


def agrees(values, options):
    scale, offset, gap = by_definition(values, options)
    factors = calibrated(values, options).factors()
    # Below this the order of summation in the definition decides, which nobody can mean.
    assert gap < 1e-12 or (factors.scale == np.float32(scale) and factors.offset == offset)


def distributions(size, seed):
    generator = np.random.default_rng(seed)
    normal = generator.standard_normal(size)
    return {
        "normal": normal,
        "relu": np.maximum(normal, 0.0),
        "relu6": np.clip(4.0 * normal, 0.0, 6.0),
        "tanh": np.tanh(3.0 * normal),
        "laplace": generator.laplace(size=size),
        "heavy tailed": generator.standard_cauchy(size),
        "negative": -generator.exponential(size=size),
        "far from zero": 100.0 + normal,
        "pixels": generator.integers(0, 256, size) / 255.0,
        "binary fractions": generator.integers(-128, 128, size) / 64.0,
        "two values": (normal > 0.0) * 1.0,
        "constant": np.full(size, 3.7),
        "negative constant": np.full(size, -3.7),
        "tiny": normal * 1e-9,
        "near the scale's floor": normal * 3e-5,
        "denormal": normal * 1e-42,
        "huge": normal * 1e6,
        "one outlier": np.append(normal[:-1], 1e4),
        "many duplicates": np.repeat(normal[: -(-size // 50)], 50)[:size],
    }


OPTIONS = {
    "default": ObserverOptions(),
    "symmetric": ObserverOptions(asymmetric=False),
    "4 bits": ObserverOptions(num_bits=4),
    "16 bits": ObserverOptions(num_bits=16),
    "deep percentiles": ObserverOptions(max_percentile=0.9, min_percentile=0.95),
    "deepest percentiles": ObserverOptions(max_percentile=0.51, min_percentile=1.0),
    "another search": ObserverOptions(search_range=(0.5, 1.1), search_step=0.05),
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("kind", distributions(1, 0))
def test_the_candidate_of_the_definition_is_found(kind, options):
    for size in (1, 2, 37, 1000, 12_000):
        agrees(distributions(size, seed=size)[kind].astype(np.float32), options)


@pytest.mark.parametrize("kind", ["normal", "relu", "laplace", "pixels", "heavy tailed"])
def test_the_candidate_of_the_definition_is_found_among_many_values(kind):
    agrees(distributions(400_000, seed=8)[kind].astype(np.float32), ObserverOptions())


def test_limits_deeper_than_the_values_kept_are_counted_exactly():
    values = np.random.default_rng(3).standard_normal(60_000).astype(np.float32)
    options = ObserverOptions(max_percentile=0.8, min_percentile=0.85)
    observer = calibrated(values, options)
    scale, offset, _ = by_definition(values, options)
    assert (observer.factors().scale, observer.factors().offset) == (np.float32(scale), offset)
    assert observer.passes > 1


def test_well_separated_candidates_need_one_pass():
    values = np.random.default_rng(4).standard_normal(50_000).astype(np.float32)
    assert calibrated(values, ObserverOptions()).passes == 1


def test_candidates_that_the_histogram_cannot_tell_apart_are_settled_by_a_second_pass():
    # 255 / 1.02 = 250 and 255 / 1.25 = 204: all of these reproduce the value, up to the rounding of float64.
    values = np.full(100, 3.7, np.float32)
    assert calibrated(values, ObserverOptions()).passes == 2


def test_the_first_of_equal_candidates_wins():
    # Without a positive value, every candidate has the same range.
    values = np.array([-255.0, -1.0, -2.5], np.float32)
    factors = calibrated(values, ObserverOptions()).factors()
    assert (factors.scale, factors.offset) == (1.0, 127)


def test_the_larger_side_decides_the_symmetric_scale():
    # Every value is a multiple of the scale at factor 1, so the loss there is 0.
    positive = calibrated(np.array([127.0, -20.0, 33.0]), ObserverOptions(asymmetric=False))
    negative = calibrated(np.array([-128.0, 20.0, 33.0]), ObserverOptions(asymmetric=False))
    assert (positive.factors().scale, negative.factors().scale) == (1.0, 1.0)


# Inputs of layers in small networks, and the scale_d and offset_d that the reference implementation recorded for them
# (8 bits, default options, one batch).
MEASURED = [
    (
        """-0.077570796 -0.04757382 0.0518049 0.049575936 0.0042401906 -0.00034619123 -0.028982986 0.032580696
        -0.03523749 0.059121355 -0.0038236633 -0.024868406 -0.03851552 0.06175915""",
        0.0005512358,
        13,
    ),
    (
        """-0.03843774 -0.034504093 0.07299243 0.008042862 -0.006803049 0.048184805 0.042243846 -0.026753716
        0.04561548 0.0018563624""",
        0.00047991771,
        -48,
    ),
    (
        """-0.038542267 -0.039333448 0.06396273 -0.003057179 -0.019088395 0.04184759 0.038101938 -0.03737898
        0.044062972 -0.012788296""",
        0.0004151164,
        -33,
    ),
]


@pytest.mark.parametrize(("values", "scale", "offset"), MEASURED)
def test_the_factors_of_the_reference_implementation_are_found(values, scale, offset):
    factors = calibrated(np.array(values.split(), np.float32), ObserverOptions()).factors()
    assert factors.scale == pytest.approx(scale, rel=1e-6)
    assert factors.offset == offset
