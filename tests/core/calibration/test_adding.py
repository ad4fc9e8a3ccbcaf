"""Values that were accumulated elsewhere: adding them comes to the same as observing them."""

from __future__ import annotations

import re

import numpy as np
import pytest

from twinquant.calibration import ObserverOptions, make_observer
from twinquant.calibration.extremes import Extremes
from twinquant.calibration.grid import Grid
from twinquant.calibration.hfmg import RangeHistogram
from twinquant.calibration.ifmr_losses import Candidate
from twinquant.calibration.ifmr_stages import Refinement, Settlement, Survey
from twinquant.calibration.observer import Accumulated
from twinquant.calibration.station import Station
from twinquant.calibration.tails import Rank, Tail
from twinquant.calibration.watches import Watch
from twinquant.errors import ArgumentError, CalibrationError
from twinquant.registry import Tap

EVERY_WAY = {
    **{name: ObserverOptions(algorithm=name) for name in ("ifmr", "hfmg", "minmax", "percentile", "entropy", "mse")},
    "ifmr, symmetric": ObserverOptions(asymmetric=False),
    "ifmr, three passes": ObserverOptions(num_bits=16, max_percentile=0.6, min_percentile=0.55),
}

VALUES = np.random.default_rng(2).standard_normal(20_000).astype(np.float32)


def elsewhere(stage, values):
    """Fill a fresh stage, as a device would, and return what it hands over."""
    twin, low, high = stage.fresh(), float(values.min()), float(values.max())
    twin.take(values, low, high)
    return Accumulated(twin, values.size, low, high)


def bits(holder):
    return {name: array.tobytes() for name, array in holder.state().items()}


@pytest.mark.parametrize("options", EVERY_WAY.values(), ids=EVERY_WAY)
def test_adding_what_was_accumulated_gives_the_state_of_observing_it_in_every_pass(options):
    observing, adding = make_observer(options), make_observer(options)
    again = True
    while again:
        for part in np.array_split(VALUES, 3):
            observing.observe(part)
            adding.add(elsewhere(adding.stage, part))
            assert bits(adding) == bits(observing)
        again = observing.end_pass()
        assert adding.end_pass() == again
    assert adding.factors() == observing.factors()
    assert adding.stage is None


def test_a_stage_of_another_algorithm_is_refused():
    part = elsewhere(make_observer(ObserverOptions(algorithm="minmax")).stage, VALUES)
    with pytest.raises(ArgumentError, match="cannot merge"):
        make_observer(ObserverOptions(algorithm="ifmr")).add(part)


def test_a_stage_of_an_earlier_pass_is_refused():
    observer = make_observer(ObserverOptions(algorithm="hfmg"))
    part = elsewhere(observer.stage, VALUES)
    observer.add(part)
    observer.end_pass()
    with pytest.raises(ArgumentError, match="cannot merge"):
        observer.add(part)


def test_a_stage_with_other_terms_is_refused():
    observers = [make_observer(ObserverOptions(algorithm="hfmg")) for _ in range(2)]
    for observer, values in zip(observers, (VALUES, 2 * VALUES), strict=True):
        observer.observe(values)
        observer.end_pass()
    with pytest.raises(ArgumentError, match="cannot merge"):
        observers[0].add(elsewhere(observers[1].stage, VALUES))


@pytest.mark.parametrize("other", [Grid(16, sums=True), Grid(8, sums=False)])
@pytest.mark.parametrize("stage_of", [lambda grid: grid, Survey], ids=["grid", "survey"])
def test_grids_of_another_size_or_without_sums_are_refused(other, stage_of):
    observer = make_observer(ObserverOptions(algorithm="ifmr"))
    observer._stage = stage_of(Grid(8, sums=True))
    observer.add(elsewhere(stage_of(Grid(8, sums=True)), VALUES))
    with pytest.raises(ArgumentError, match="cannot merge what was accumulated in another way"):
        observer.add(elsewhere(stage_of(other), VALUES))


def test_a_stage_knows_how_much_memory_is_its_own():
    grid, tail = Grid(8, sums=True), Tail()
    counts = 8 * (1 << 16)  # of int64
    assert Grid(8, sums=False).nbytes == 8 * 17
    assert grid.nbytes == 3 * 8 * 17
    assert Extremes().nbytes == 2 * 8
    assert RangeHistogram(0.0, 1.0, np.zeros(10, np.int64)).nbytes == 80
    assert tail.nbytes == 4 * 4096
    tail.take(np.ones(7, np.float32), 1.0)
    assert tail.nbytes == 4 * (4096 + 7)
    assert Survey(grid, tail, Tail()).nbytes == 3 * 8 * 17 + 4 * (4096 + 7) + 4 * 4096
    assert Refinement(grid, Rank.between(0.0, 1.0, 1), Rank.between(0.0, 1.0, 1)).nbytes == 2 * counts
    assert Settlement([Candidate(0.0, 1.0, 1.0)] * 2, 1.0).nbytes == 2 * 3 * 2 * 8


def test_nothing_is_added_to_an_observer_that_has_its_factors():
    observer = make_observer(ObserverOptions(algorithm="minmax"))
    part = elsewhere(observer.stage, VALUES)
    observer.add(part)
    observer.end_pass()
    with pytest.raises(ArgumentError, match="have their factors"):
        observer.add(part)


def balanced_station(channel_axis=1):
    """A station of an activation with 4 channels that is balanced, in its first pass."""
    options = ObserverOptions(algorithm="minmax")
    return Station(Watch(Tap("conv"), ("conv",), options, migration_strength=0.5, channel_axis=channel_axis))


def test_a_balanced_station_takes_activations_without_the_axis_of_the_batch():
    values = np.arange(-24, 24, dtype=np.float32).reshape(4, 4, 3)  # as many channels as rows
    station = balanced_station(channel_axis=-3)
    station.observe(values)
    station.end_pass(lambda _: np.ones(4, np.float32))
    np.testing.assert_allclose(station.balance, np.sqrt([24, 12, 11, 23]), rtol=1e-6)
    assert [station.multipliers(ndim).shape for ndim in (3, 4)] == [(4, 1, 1), (1, 4, 1, 1)]
    station.observe(values)
    station.end_pass(lambda _: pytest.fail("the weight is not asked for again"))
    # The largest values lie in the outer channels: -24 / sqrt(24) and 23 / sqrt(23).
    assert station.factors().scale == pytest.approx((np.sqrt(24) + np.sqrt(23)) / 255, rel=1e-6)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((4, 5), "has shape (4, 5): no axis -3"), ((1, 5, 4), "has shape (1, 5, 4): 1 channels along axis -3")],
)
def test_a_balanced_activation_without_its_channels_is_an_error_that_names_its_shape(shape, message):
    station = balanced_station(channel_axis=-3)
    station.balance, station._channels = np.ones(4, np.float32), None
    with pytest.raises(CalibrationError, match=re.escape(message)):
        station.observe(np.ones(shape, np.float32))


def test_values_of_too_few_axes_have_no_multipliers():
    station = balanced_station(channel_axis=-3)
    station.balance = np.ones(4, np.float32)
    with pytest.raises(CalibrationError, match="has 2 axes: no axis -3"):
        station.multipliers(2)


def test_a_station_without_balance_takes_values_as_they_are_in_every_pass():
    station = Station(Watch(Tap("conv"), ("conv",), ObserverOptions(algorithm="minmax")))
    assert not station.channel_ends
    assert station.multipliers(4) is None
    station.add(elsewhere(station.stage, VALUES))
    station.end_pass(lambda _: pytest.fail("no weight is needed"))
    assert station.finished
    assert station.stage is None


def test_a_balanced_station_first_asks_for_both_ends_of_every_channel_then_for_multiplied_values():
    batch = np.arange(-12, 12, dtype=np.float32).reshape(2, 4, 3, 1)
    adding, observing = balanced_station(), balanced_station()
    for station in (adding, observing):
        assert station.channel_ends
        assert station.stage is None
        station.observe(batch)
        station.end_pass(lambda _: np.array([1, 4, 1, 1], np.float32))
        assert not station.channel_ends
        assert station.multipliers(2).shape == (1, 4)
    # The channels reach from -12, -9, 6 and 9 to 2, 5, 8 and 11; factors are (activation / weight) ** 0.5.
    expected = 1 / np.sqrt([12, 9 / 4, 8, 11])
    multipliers = adding.multipliers(4)
    assert multipliers.shape == (1, 4, 1, 1)
    np.testing.assert_allclose(multipliers.reshape(-1), expected, rtol=1e-6)
    observing.observe(batch)
    adding.add(elsewhere(adding.stage, (batch * multipliers).reshape(-1)))
    assert bits(adding) == bits(observing)


def test_the_bins_of_a_grid_go_from_the_smallest_value_to_the_largest_and_hold_0():
    grid = Grid(8, sums=True)
    assert list(grid.bins) == [0]
    # With bins of a half there are 8 from -2 to 5; with a quarter there would be 15.
    grid.widen(-1.0, 2.5)
    assert (grid.width, list(grid.bins)) == (0.5, [-2, -1, 0, 1, 2, 3, 4, 5])
    assert grid.has_sums
    assert not Grid(8, sums=False).has_sums


@pytest.mark.parametrize("sums", [True, False])
def test_counts_that_are_added_to_a_grid_are_those_of_taking_the_values(sums):
    values = np.array([-1.0, -0.75, 0.25, -0.25, 0.5, 0.625, 2.5], np.float32)
    taking, adding = Grid(8, sums=sums), Grid(8, sums=sums)
    taking.take(values, -1.0, 2.5)
    adding.widen(-1.0, 2.5)
    # Bins of a half: -1 is in bin -2, -0.75 a half into bin -1, 0.625 a quarter into bin 1. Positions count 2^-23.
    counts = np.array([1, 1, 2, 2, 0, 0, 0, 1])
    positions = np.array([0, -(1 << 22), 999, 1 << 21, 0, 0, 0, 0])
    adding.add(counts, positions if sums else None)
    assert {k: v.tobytes() for k, v in adding.arrays().items()} == {k: v.tobytes() for k, v in taking.arrays().items()}
    adding.add(counts, positions if sums else None)
    assert adding.histogram().counts.tolist() == (2 * counts).tolist()


def test_counts_that_are_added_to_a_search_for_a_rank_narrow_it_as_values_do():
    values = np.array([1.0, 1.25, 1.5, 1.75, -3.0, 5.0], np.float32)
    taking, adding = Rank.between(1.0, 2.0, 2), Rank.between(1.0, 2.0, 2)
    taking.take(values)
    # Between 1 and 2 there are 2^23 values of float32: 128 share each of the 65,536 places.
    assert (adding.places, adding.shift) == (1 << 16, 7)
    counts = np.zeros(adding.places, np.int64)
    counts[[0, 1 << 14, 1 << 15, 3 << 14]] = 1
    adding.add(counts)
    assert {k: v.tobytes() for k, v in adding.arrays().items()} == {k: v.tobytes() for k, v in taking.arrays().items()}
    narrowed = adding.narrowed()
    one_and_a_half = int(np.float32(1.5).view(np.int32))
    assert (narrowed.start, narrowed.stop, narrowed.rank) == (one_and_a_half, one_and_a_half + 128, 1)


def totals(settlement):
    """The sums in the three units, each of which is stored as what is above 2^32 and the rest."""
    return [[(high << 32) + low for high, low in sums] for sums in settlement.arrays()["totals"].tolist()]


def test_errors_that_are_added_are_those_of_taking_the_values():
    # The errors of 0.25, 0.5 and 5 are 1/16, 1/4 (a half is rounded to 0) and 1 (5 is clipped, or rounded to 4).
    candidates = [Candidate(0.0, 4.0, 1.0), Candidate(0.0, 8.0, 4.0)]
    taking, adding = Settlement(candidates, 2.0**-10), Settlement(candidates, 2.0**-10)
    assert (adding.candidates, adding.unit) == (tuple(candidates), 2.0**-10)
    taking.take(np.array([0.25, 0.5, 5.0, 4.0], np.float32), 0.25, 5.0)
    expected = (1024 + 256 + 64,)
    assert totals(taking) == [[*expected, 0, 0]] * 2
    for index in range(2):
        adding.add(index, expected)
    assert {k: v.tobytes() for k, v in adding.arrays().items()} == {k: v.tobytes() for k, v in taking.arrays().items()}
    adding.add(0, (1,))
    assert adding.best() == candidates[1]


def test_errors_in_finer_units_count_only_while_there_are_none_in_larger_ones():
    settlement = Settlement([Candidate(0.0, 1.0, 1.0)], 1.0)
    settlement.add(0, (0, 0, 5))
    settlement.add(0, (0, 0, 2))
    assert totals(settlement) == [[0, 0, 7]]
    settlement.add(0, (0, 3, 1))
    assert totals(settlement) == [[0, 3, 0]]
    settlement.add(0, (1,))
    settlement.add(0, (0, 9))
    assert totals(settlement) == [[1, 0, 0]]
