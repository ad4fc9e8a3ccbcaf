"""What is reduced on the device leaves a station as all values would, bit for bit."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from twinquant.calibration.options import ObserverOptions  # noqa: E402  torch may be absent
from twinquant.calibration.station import Station  # noqa: E402
from twinquant.calibration.watches import Watch  # noqa: E402
from twinquant.registry import Tap  # noqa: E402
from twinquant_torch.reduction import reduced  # noqa: E402


def observed(watch, batches, reduce):
    station = Station(watch)
    for values in batches:
        station.observe((reduced(values, station) if reduce else values).numpy())
    state = station.state()
    return {name: array.tobytes() for name, array in state.items() if name != "observer.count"}


@pytest.mark.parametrize("shape", [(3, 4, 5, 5), (3, 4)])
def test_a_range_needs_both_ends_only(shape):
    batches = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    watch = Watch(Tap("fc"), ("fc",), ObserverOptions(algorithm="minmax"))
    assert reduced(batches[0], Station(watch)).numel() == 2
    assert observed(watch, batches, True) == observed(watch, batches, False)


@pytest.mark.parametrize(("shape", "axis"), [((3, 4, 5, 5), 1), ((3, 4), -1), ((2, 7, 4), -1), ((4,), -1)])
def test_balance_factors_need_both_ends_of_every_channel(shape, axis):
    batches = [torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    watch = Watch(Tap("fc"), ("fc",), ObserverOptions(), migration_strength=0.5, channel_axis=axis)
    assert reduced(batches[0], Station(watch)).numel() <= 2 * 4
    assert observed(watch, batches, True) == observed(watch, batches, False)


@pytest.mark.parametrize("algorithm", ["ifmr", "hfmg", "entropy", "mse", "percentile"])
def test_algorithms_that_count_get_every_value(algorithm):
    values = torch.arange(12.0)
    watch = Watch(Tap("fc"), ("fc",), ObserverOptions(algorithm=algorithm, asymmetric=False))
    assert torch.equal(reduced(values, Station(watch)), values)


def test_an_empty_batch_stays_empty():
    watch = Watch(Tap("fc"), ("fc",), ObserverOptions(algorithm="minmax"))
    assert reduced(torch.zeros(0, 3), Station(watch)).numel() == 0


def test_a_balanced_activation_is_divided_before_its_range_is_taken():
    watch = Watch(Tap("fc"), ("fc",), ObserverOptions(algorithm="minmax"))
    station = Station(watch)
    station.balance = np.array([1, 100], np.float32)
    values = torch.tensor([[1.0, 50.0]])
    station.observe(reduced(values, station).numpy())
    station.end_pass(lambda layer: np.ones(2, np.float32))
    assert station.factors().scale == pytest.approx(1 / 255)
