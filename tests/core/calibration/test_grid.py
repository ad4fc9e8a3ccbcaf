"""The growing histogram and the k-th largest, against integers counted one by one."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest

from twinquant.calibration.grid import Grid
from twinquant.calibration.tails import Rank, Tail, rank_of_percentile


def filled(size, batches):
    grid = Grid(size, sums=True)
    for batch in batches:
        grid.take(batch, float(batch.min()), float(batch.max()))
    return grid


def values_of(seed, size=2000):
    generator = np.random.default_rng(seed)
    values = generator.standard_normal(size) * np.exp2(generator.integers(-20, 12, size))
    return values.astype(np.float32)


@pytest.mark.parametrize("seed", range(4))
def test_counts_and_sums_are_those_of_exact_arithmetic(seed):
    values = values_of(seed)
    histogram = filled(64, np.array_split(values, 20)).histogram()
    width = Fraction(histogram.width)
    counts, sums = Counter(), Counter()
    for value in values.tolist():
        index = int(Fraction(value) / width)
        counts[index] += 1
        sums[index] += Fraction(value) / width - index if index else 0
    indices = range(histogram.first, histogram.first + histogram.counts.size)
    assert histogram.counts.tolist() == [counts[index] for index in indices]
    assert histogram.sums.tolist() == [sums[index] * 2**23 for index in indices]


@pytest.mark.parametrize("seed", range(4))
def test_between_half_and_all_of_the_bins_are_in_use(seed):
    for values in (values_of(seed), np.abs(values_of(seed)), -np.abs(values_of(seed))):
        assert 32 <= filled(64, [values]).histogram().counts.size <= 64


def test_values_that_rise_by_eighty_powers_of_two_leave_the_grid_of_the_last_ones():
    rising = [np.full(3, 2.0**power, np.float32) for power in range(-60, 20)]
    rising_state = filled(64, rising).arrays()
    falling_state = filled(64, rising[::-1]).arrays()
    assert {name: array.tobytes() for name, array in rising_state.items()} == {
        name: array.tobytes() for name, array in falling_state.items()
    }
    assert rising_state["counts"].sum() == 240


def test_more_values_than_a_packed_cell_holds_are_counted_exactly():
    block = np.full(1 << 16, 3.0, np.float32)
    histogram = filled(64, [block] * 9).histogram()
    assert histogram.counts[-1] == 9 << 16


def test_positions_of_more_values_than_a_packed_cell_holds_are_summed_exactly_on_both_sides():
    # Bins are 1/8 wide, and both values in the middle of one.
    block = np.repeat(np.array([-3.0625, 3.0625], np.float32), 1 << 15)
    histogram = filled(64, [block] * 19).histogram()
    assert histogram.width == 0.125
    assert (histogram.counts[[0, -1]]).tolist() == [19 << 15, 19 << 15]
    assert (histogram.sums[[0, -1]]).tolist() == [-(19 << 15) << 22, (19 << 15) << 22]


def test_magnitudes_of_both_signs_are_counted_together():
    grid = filled(8, [np.array([-3.0, -2.0, 0.0, 1.0, 2.0, 3.0], np.float32)])
    assert grid.histogram().width == 1.0
    assert grid.histogram().magnitudes().tolist() == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("percentile", "count", "rank"),
    [(1.0, 500, 1), (0.99999999, 10**9, 1), (0.999999, 10, 1), (0.9, 1000, 100), (0.75, 3, 1), (0.6, 10, 4)],
)
def test_the_rank_of_a_percentile_is_n_minus_the_whole_part_of_p_n(percentile, count, rank):
    assert rank_of_percentile(percentile, count) == rank


def test_a_tail_holds_the_largest_values_in_any_order():
    values = np.random.default_rng(0).permutation(np.repeat(np.arange(1.0, 9001.0), 2)).astype(np.float32)
    tail = Tail()
    for block in np.array_split(values, 30):
        tail.take(block, float(block.max()))
    assert [tail.largest(rank) for rank in (1, 2, 3, 4096)] == [9000.0, 9000.0, 8999.0, 6953.0]
    assert tail.largest(4097) is None


def test_a_tail_answers_0_where_positive_values_run_out():
    tail = Tail()
    tail.take(np.array([-1.0, 5.0, -0.0], np.float32), 5.0)
    assert (tail.largest(1), tail.largest(2)) == (5.0, 0.0)


@pytest.mark.parametrize("rank", [1, 5, 499, 500, 501, 900, 1400])
def test_counting_finds_the_value_of_a_rank_and_0_below_the_positive_ones(rank):
    generator = np.random.default_rng(1)
    values = np.concatenate([generator.exponential(size=500), np.zeros(400), -generator.exponential(size=600)])
    values = generator.permutation(values).astype(np.float32)
    search = Rank.between(0.0, float(values.max()) * 2, rank)
    while search.value is None:
        for block in np.array_split(values, 3):
            search.take(block)
        search = search.narrowed()
    assert search.value == max(float(np.sort(values)[-rank]), 0.0)
