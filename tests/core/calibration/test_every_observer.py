"""What holds for every algorithm: no order, batch size or division of the data can be told from the result."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twinquant.calibration import ObserverOptions, make_observer, restore_observer
from twinquant.errors import ArgumentError, CalibrationError

ALGORITHMS = ("ifmr", "hfmg", "minmax", "percentile", "entropy", "mse")

EVERY_WAY = [
    *(ObserverOptions(algorithm=algorithm) for algorithm in ALGORITHMS),
    *(ObserverOptions(algorithm=algorithm, asymmetric=False) for algorithm in ALGORITHMS),
    ObserverOptions(max_percentile=0.7, min_percentile=0.9),
    ObserverOptions(num_bits=16),
]


def name_of(options):
    share = "" if options.max_percentile > 0.9 else "-deep"
    return f"{options.algorithm}{options.num_bits}{'' if options.asymmetric else '-symmetric'}{share}"


every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)
every_way = pytest.mark.parametrize("options", EVERY_WAY, ids=name_of)


def calibrated(options, batches):
    observer = make_observer(options)
    for _ in range(6):
        for batch in batches:
            observer.observe(batch)
        if not observer.end_pass():
            return observer
    raise AssertionError("more than six passes")


def calibrated_in_parts(options, parts):
    """Each part by an observer of its own, which is stored in a file and read again before it is merged."""
    whole = make_observer(options)
    for _ in range(6):
        for part in parts:
            worker = whole.fork()
            worker.observe(part)
            file = io.BytesIO()
            np.savez(file, **worker.state())
            file.seek(0)
            with np.load(file) as state:
                whole.merge(restore_observer(options, state))
        if not whole.end_pass():
            return whole
    raise AssertionError("more than six passes")


def same_bits(one, other):
    return one.factors() == other.factors() and {k: v.tobytes() for k, v in one.state().items()} == {
        k: v.tobytes() for k, v in other.state().items()
    }


def activation(kind, size, seed):
    generator = np.random.default_rng(seed)
    normal = generator.standard_normal(size)
    kinds = {
        "normal": normal,
        "relu": np.maximum(normal, 0.0),
        "relu6": np.clip(4.0 * normal, 0.0, 6.0),
        "heavy tailed": generator.standard_cauchy(size),
        "pixels": generator.integers(0, 256, size) / 255.0,
        "constant": np.full(size, 2.7),
        "tiny": normal * 1e-30,
        "denormal": normal * 1e-42,
        "growing": normal * np.exp2(np.linspace(-60, 20, size)),
        "negative": -np.abs(normal) - 5.0,
        "signed zeros": np.where(normal > 0.0, -0.0, 0.0),
    }
    return kinds[kind].astype(np.float32)


KINDS = ("normal", "relu", "relu6", "heavy tailed", "pixels", "constant", "tiny", "denormal", "growing", "negative")


@every_way
@pytest.mark.parametrize("kind", [*KINDS, "signed zeros"])
def test_shuffled_rebatched_and_divided_data_give_the_same_bits(options, kind):
    values = activation(kind, 3001, seed=5)
    shuffled = np.random.default_rng(6).permutation(values)
    expected = calibrated(options, [values])
    assert same_bits(calibrated(options, np.array_split(shuffled, 13)), expected)
    assert same_bits(
        calibrated(options, [shuffled[:1], np.empty(0, np.float32), shuffled[1:].reshape(3, 10, 100)]), expected
    )
    assert same_bits(calibrated_in_parts(options, [shuffled[:7], shuffled[7:2000], shuffled[2000:]]), expected)


@every_algorithm
@settings(max_examples=40, deadline=None)
@given(
    values=st.lists(st.floats(-65536.0, 65536.0, width=32), min_size=1, max_size=60),
    cuts=st.lists(st.integers(0, 60), max_size=4),
    seed=st.integers(0, 99),
)
def test_any_values_in_any_order_give_the_same_bits(algorithm, values, cuts, seed):
    options = ObserverOptions(algorithm=algorithm)
    array = np.array(values, np.float32)
    shuffled = np.random.default_rng(seed).permutation(array)
    ends = [0, *sorted(min(cut, array.size) for cut in cuts), array.size]
    parts = [shuffled[start:stop] for start, stop in itertools.pairwise(ends)]
    expected = calibrated(options, [array])
    assert same_bits(calibrated(options, parts), expected)
    assert same_bits(calibrated_in_parts(options, parts), expected)


@every_way
def test_an_interrupted_pass_continues_from_its_state(options):
    first, second = np.split(activation("normal", 2000, seed=9), 2)
    observer = make_observer(options)
    for _ in range(6):
        observer.observe(first)
        observer = restore_observer(options, observer.state())
        observer.observe(second)
        if not observer.end_pass():
            break
        observer = restore_observer(options, observer.state())
    assert same_bits(observer, calibrated(options, [first, second]))


@every_way
def test_zero_and_the_factors_are_inside_their_ranges(options):
    for kind in KINDS:
        factors = calibrated(options, [activation(kind, 500, seed=1)]).factors()
        assert 1.19e-7 <= factors.scale < 1 / 1.19e-7
        assert factors.scale == np.float32(factors.scale)
        assert -(2 ** (options.num_bits - 1)) <= factors.offset < 2 ** (options.num_bits - 1)
        assert factors.num_bits == options.num_bits


@every_way
def test_an_activation_of_zeros_has_scale_1(options):
    factors = calibrated(options, [np.zeros((4, 5), np.float32)]).factors()
    assert factors.scale == 1.0
    assert factors.offset == (-(2 ** (options.num_bits - 1)) if options.asymmetric else 0)


@every_algorithm
def test_a_symmetric_range_has_offset_0(algorithm):
    options = ObserverOptions(algorithm=algorithm, asymmetric=False)
    assert calibrated(options, [activation("relu", 500, seed=2)]).factors().offset == 0


@every_algorithm
@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int32])
def test_other_types_are_taken_as_float32(algorithm, dtype):
    options = ObserverOptions(algorithm=algorithm)
    values = (100 * activation("normal", 300, seed=3)).astype(dtype)
    assert same_bits(calibrated(options, [values]), calibrated(options, [values.astype(np.float32)]))


@every_algorithm
def test_arrays_that_do_not_lie_in_memory_in_order_are_read_in_any_layout(algorithm):
    options = ObserverOptions(algorithm=algorithm)
    values = activation("normal", 600, seed=4).reshape(20, 30)
    assert same_bits(calibrated(options, [values.T[::-1]]), calibrated(options, [values]))


@every_algorithm
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_a_value_that_is_not_finite_in_float32_is_an_error(algorithm, bad):
    values = np.ones(200_000)
    values[150_000] = bad
    with pytest.raises(CalibrationError, match=r"(1 NaN and 0|0 NaN and 1) infinite"):
        make_observer(ObserverOptions(algorithm=algorithm)).observe(values)


@every_algorithm
def test_values_too_large_for_a_scale_are_an_error(algorithm):
    values = np.array([-1.0, 2.0, 3e12], np.float32)
    with pytest.raises(CalibrationError, match="the largest that can be represented is"):
        calibrated(ObserverOptions(algorithm=algorithm), [values])


@every_algorithm
def test_a_pass_without_a_value_is_an_error(algorithm):
    observer = make_observer(ObserverOptions(algorithm=algorithm))
    observer.observe(np.zeros((0, 3), np.float32))
    with pytest.raises(CalibrationError, match="no value was observed"):
        observer.end_pass()


def test_a_second_pass_over_less_data_is_an_error_that_says_how_much_there_was():
    observer = make_observer(ObserverOptions(algorithm="hfmg"))
    observer.observe(np.arange(10.0))
    assert observer.end_pass()
    observer.observe(np.arange(9.0))
    with pytest.raises(CalibrationError, match=r"pass 2 .* had 9 values, the first had 10"):
        observer.end_pass()


def test_factors_before_the_last_pass_are_an_error():
    with pytest.raises(ArgumentError, match="no factors yet"):
        make_observer(ObserverOptions()).factors()


def test_a_finished_observer_takes_no_more_values():
    observer = calibrated(ObserverOptions(algorithm="minmax"), [np.arange(3.0)])
    with pytest.raises(ArgumentError, match="has its factors"):
        observer.observe(np.arange(3.0))


def test_observers_with_different_options_cannot_be_merged():
    with pytest.raises(ArgumentError, match="cannot merge"):
        make_observer(ObserverOptions()).merge(make_observer(ObserverOptions(num_bits=4)))


def test_observers_whose_first_passes_differ_cannot_be_merged():
    observers = []
    for top in (9.0, 8.0):
        observer = make_observer(ObserverOptions(algorithm="hfmg"))
        observer.observe(np.array([0.0, 1.0, top]))
        observer.end_pass()
        observers.append(observer)
    with pytest.raises(ArgumentError, match="earlier passes saw different data"):
        observers[0].merge(observers[1])


def test_a_state_of_another_algorithm_is_refused():
    state = make_observer(ObserverOptions(algorithm="mse")).state()
    with pytest.raises(ArgumentError, match="'mse'"):
        restore_observer(ObserverOptions(algorithm="entropy"), state)


def test_an_unknown_algorithm_is_an_error_that_lists_the_known_ones():
    with pytest.raises(ArgumentError, match="ifmr, hfmg, minmax, percentile, entropy, mse"):
        make_observer(ObserverOptions(algorithm="best"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_bits": 6},
        {"max_percentile": 0.5},
        {"min_percentile": 1.5},
        {"percentile": 99.99},
        {"search_range": (1.3, 0.7)},
        {"search_step": 0.7},
        {"search_step": 0.0},
        {"search_step": float("nan")},
        {"search_step": 5.9e-5},
        {"search_step": 1e-300},
        {"search_range": (0.7, float("inf"))},
        {"num_of_bins": 1000},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_options_outside_their_range_are_an_error_that_names_them(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        ObserverOptions(**wrong)


def test_a_step_as_long_as_the_range_is_allowed():
    assert ObserverOptions(search_range=(0.9, 1.0), search_step=0.1).search_step == 0.1  # 1.0 - 0.9 < 0.1 in binary


@every_algorithm
def test_the_state_does_not_grow_with_the_data(algorithm):
    sizes = []
    for rounds in (1, 8):
        observer = make_observer(ObserverOptions(algorithm=algorithm))
        for seed in range(rounds):
            observer.observe(np.append(activation("relu", 20_000, seed), np.float32(9.0)))
        sizes.append(sum(array.nbytes for array in observer.state().values()))
    assert sizes[0] == sizes[1]
