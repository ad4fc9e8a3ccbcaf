"""What is reduced on the device leaves a station as all values would, bit for bit."""

import logging

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import twinquant  # noqa: E402  torch may be absent
import twinquant_torch.amct as amct  # noqa: E402  see above
from twinquant.calibration.observer import Accumulated  # noqa: E402  see above
from twinquant.calibration.options import ObserverOptions  # noqa: E402  see above
from twinquant.calibration.station import Station  # noqa: E402  see above
from twinquant.calibration.watches import Watch  # noqa: E402  see above
from twinquant.errors import CalibrationError  # noqa: E402  see above
from twinquant.registry import Tap  # noqa: E402  see above
from twinquant_torch import device_trial, reduction  # noqa: E402  see above
from twinquant_torch.device_stages import filled  # noqa: E402  see above
from twinquant_torch.device_trial import counts_as_numpy  # noqa: E402  see above
from twinquant_torch.reduction import accumulated, observe, reduced  # noqa: E402  see above

ALGORITHMS = ["ifmr", "hfmg", "minmax", "percentile", "entropy", "mse"]


@pytest.fixture
def elsewhere(monkeypatch):
    """Treat the CPU's memory as an accelerator's, however few values there are."""
    monkeypatch.setattr(reduction, "counts_there", lambda device: True)
    monkeypatch.setattr(reduction, "_FEW", 0)


def randn(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def watch_of(migration_strength=None, channel_axis=1, **options):
    return Watch(
        Tap("fc"), ("fc",), ObserverOptions(**options), migration_strength=migration_strength, channel_axis=channel_axis
    )


def whole(station, values):
    station.observe(values.numpy())


def on_device(station, values):
    observe(station, reduced(values, station))


def states(watch, batches, show, balance=None):
    """Everything a station holds, after each pass and at the end."""
    station = Station(watch)
    station.balance = balance
    found = []
    while not station.finished:
        for values in batches:
            show(station, values)
        found.append(station.state())
        station.end_pass(lambda layer: np.ones(batches[0].shape[watch.channel_axis], np.float32))
    found.append(station.state())
    return [{name: array.tobytes() for name, array in state.items()} for state in found]


BATCHES = {
    "both sides": [randn((3, 4, 5, 5), seed) for seed in range(3)],
    "half of them zeros": [randn((3, 4, 5, 5), seed).relu() for seed in range(3)],
    "negative": [-randn((50,), seed).abs() - 1 for seed in range(3)],
    "more than a tail, ever wider": [randn((3, 5000), seed) * 10**seed for seed in range(3)],
    "ties": [(randn((3, 700), seed) * 16).round() / 8 for seed in range(3)],
    "zeros of both signs": [torch.tensor([0.0, -0.0, 1.0, -1.0]), torch.tensor([-0.0])],
    "one value": [torch.full((20,), 0.3)] * 2,
    "near zero": [randn((300,), seed) * 1e-39 for seed in range(3)],
    "large": [randn((300,), seed) * 1e5 for seed in range(3)],
    "float16": [randn((4, 300), seed).half() for seed in range(3)],
    "float64": [randn((4, 300), seed).double() / 3 for seed in range(3)],
    "some empty": [torch.zeros(0, 4), randn((4, 4), 0), torch.zeros(0, 4)],
    "not contiguous": [randn((6, 4, 8), seed).transpose(0, 2)[::2] for seed in range(2)],
}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("asymmetric", [True, False])
@pytest.mark.parametrize("data", BATCHES)
def test_every_algorithm_accumulates_on_the_device_what_it_accumulates_in_numpy(elsewhere, data, algorithm, asymmetric):
    watch = watch_of(algorithm=algorithm, asymmetric=asymmetric)
    assert states(watch, BATCHES[data], on_device) == states(watch, BATCHES[data], whole)


@pytest.mark.parametrize(
    ("data", "options", "stages"),
    [
        ("both sides", {"num_bits": 16}, {"Survey", "Settlement"}),
        ("near zero", {"num_bits": 16}, {"Survey"}),
        ("deep", {"max_percentile": 0.6, "min_percentile": 0.55}, {"Survey", "Refinement"}),
    ],
)
def test_every_pass_of_ifmr_counts_on_the_device(elsewhere, data, options, stages):
    batches = [randn((3, 5000), seed) * 10**seed for seed in range(3)] if data == "deep" else BATCHES[data]
    expected = states(watch_of(**options), batches, whole)
    assert {s["observer.stage"].decode("utf-32") for s in expected if "observer.stage" in s} == stages
    assert states(watch_of(**options), batches, on_device) == expected


def test_values_are_counted_in_chunks(elsewhere, monkeypatch):
    monkeypatch.setattr("twinquant_torch.device_stages._CHUNK", 7)
    for options in ({}, {"num_bits": 16}, {"algorithm": "hfmg"}, {"max_percentile": 0.55}):
        batches = BATCHES["both sides"]
        assert states(watch_of(**options), batches, on_device) == states(watch_of(**options), batches, whole)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_no_activation_leaves_the_device_whole(elsewhere, algorithm):
    station = Station(watch_of(algorithm=algorithm, asymmetric=False))
    assert isinstance(reduced(torch.arange(12.0), station), Accumulated)


def test_what_is_smaller_than_a_histogram_leaves_the_device_as_it_is(monkeypatch):
    monkeypatch.setattr(reduction, "counts_there", lambda device: True)
    few, many = torch.rand(1000), torch.rand(1 << 18)
    station = Station(watch_of())
    assert reduced(few, station).tobytes() == few.numpy().tobytes()
    assert isinstance(reduced(many, station), Accumulated)
    assert sum(array.nbytes for array in reduced(many, station).stage.arrays().values()) <= many.nbytes + (64 << 10)
    assert isinstance(reduced(few, Station(watch_of(algorithm="minmax"))), Accumulated)


def test_values_on_a_cpu_stay_as_they_are():
    values = torch.rand(1 << 18)
    assert isinstance(reduced(values, Station(watch_of())), np.ndarray)


@pytest.mark.parametrize(("shape", "axis"), [((3, 4, 5, 5), 1), ((3, 4), -1), ((2, 7, 4), -1), ((4,), -1)])
def test_balance_factors_need_both_ends_of_every_channel(shape, axis):
    batches = [randn(shape, seed) for seed in range(3)]
    watch = watch_of(migration_strength=0.5, channel_axis=axis, algorithm="minmax")
    assert reduced(batches[0], Station(watch)).size <= 2 * shape[axis]
    assert states(watch, batches, on_device) == states(watch, batches, whole)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_balanced_activation_is_divided_before_it_is_counted(elsewhere, algorithm):
    balance = np.array([1, 100, 0.3, 7], np.float32)
    watch = watch_of(algorithm=algorithm)
    batches = BATCHES["both sides"]
    assert states(watch, batches, on_device, balance) == states(watch, batches, whole, balance)
    scaled = [values / torch.from_numpy(balance).reshape(1, -1, 1, 1) for values in batches]
    low, high = min(0.0, *(float(v.min()) for v in scaled)), max(0.0, *(float(v.max()) for v in scaled))
    if algorithm == "minmax":
        station = Station(watch)
        station.balance = balance
        for values in batches:
            on_device(station, values)
        station.end_pass(lambda layer: np.ones(4, np.float32))
        assert station.factors().scale == pytest.approx((high - low) / 255)


@pytest.mark.parametrize("shape", [(3, 1, 5), (3, 5, 5), (5,)])
def test_other_channels_than_there_are_balance_factors_are_refused(elsewhere, shape):
    station = Station(watch_of(channel_axis=-2))
    station.balance = np.ones(4, np.float32)
    with pytest.raises(CalibrationError, match="channels"):
        on_device(station, randn(shape, 0))


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (3, 4, 4)])
def test_channels_of_a_convolution_are_counted_from_the_end(elsewhere, shape):
    watch = watch_of(migration_strength=0.5, channel_axis=-3, algorithm="minmax")
    values = randn(shape, 0)
    ends = reduced(values, Station(watch))
    np.testing.assert_array_equal(largest_of_channels(ends), largest_of_channels(values.numpy()))


def largest_of_channels(array):
    return np.abs(array).max(axis=tuple(axis for axis in range(array.ndim) if axis != array.ndim - 3))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_values_that_are_not_finite_are_refused_with_their_number(elsewhere, algorithm, bad):
    values = torch.rand(100)
    values[7] = bad
    with pytest.raises(CalibrationError, match=r"holds [01] NaN and [01] infinite values among 100"):
        on_device(Station(watch_of(algorithm=algorithm)), values)


def test_a_part_of_another_pass_is_refused(elsewhere):
    values = randn((100,), 0)
    station = Station(watch_of(algorithm="hfmg"))
    part = accumulated(values, station)
    station.add(part)
    station.end_pass(lambda layer: np.ones(1, np.float32))
    with pytest.raises(ValueError, match="saw different data"):
        station.add(part)


def test_a_cpu_counts_as_numpy_does():
    assert device_trial.objection_to(torch.device("cpu")) is None


@pytest.fixture
def forgetting():
    device_trial._is_trusted.cache_clear()
    yield
    device_trial._is_trusted.cache_clear()


@pytest.mark.parametrize("algorithm", ["ifmr", "hfmg", "percentile"])
def test_a_device_that_rounds_otherwise_is_not_trusted(forgetting, caplog, monkeypatch, algorithm):
    def rounding_otherwise(stage, values, low, high):
        return filled(stage, values * (1 + 1e-6), low, high)

    monkeypatch.setattr(device_trial, "filled", rounding_otherwise)
    monkeypatch.setattr(device_trial, "ALGORITHMS", [algorithm])
    with caplog.at_level(logging.WARNING):
        assert not counts_as_numpy(torch.device("cpu"))
        assert not counts_as_numpy(torch.device("cpu"))
    (record,) = caplog.records
    assert (
        f"device cpu: it counts for {algorithm} what a CPU does not; activations are moved off it whole"
        in record.message
    )


def test_a_device_without_a_type_is_not_trusted(forgetting, caplog, monkeypatch):
    def without_float64(stage, values, low, high):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    monkeypatch.setattr(device_trial, "filled", without_float64)
    with caplog.at_level(logging.WARNING):
        assert not counts_as_numpy(torch.device("cpu"))
    assert "it cannot count for ifmr (Cannot convert a MPS Tensor to float64 dtype)" in caplog.text


def test_a_device_without_memory_for_counting_gives_values_whole(elsewhere, monkeypatch):
    def out_of_memory(stage, values, low, high):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(reduction, "filled", out_of_memory)
    values = randn((4, 5), 0)
    assert reduced(values, Station(watch_of())).tobytes() == values.numpy().tobytes()


def test_a_device_without_memory_for_the_trial_is_tried_again(forgetting, caplog, monkeypatch):
    def out_of_memory(stage, values, low, high):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    cpu = torch.device("cpu")
    with monkeypatch.context() as patch:
        patch.setattr(device_trial, "filled", out_of_memory)
        assert not counts_as_numpy(cpu)
    assert counts_as_numpy(cpu)
    assert not caplog.records


@pytest.mark.parametrize("options", [{"algorithm": "minmax"}, {}, {"migration_strength": 0.5}])
def test_automatic_casts_change_nothing(elsewhere, options):
    batches = BATCHES["float16"]
    expected = states(watch_of(**options), batches, whole)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert states(watch_of(**options), batches, on_device) == expected


@pytest.mark.parametrize(("algorithm", "most_waiting"), [("ifmr", 128 << 20), ("hfmg", 0)])
def test_records_are_equal_wherever_activations_are_counted(
    small_net, batches, tmp_path, monkeypatch, algorithm, most_waiting
):
    monkeypatch.setattr("twinquant_torch.batch._MOST_WAITING", most_waiting)
    monkeypatch.setattr(reduction, "_FEW", 0)
    settings = tmp_path / "settings.cfg"
    settings.write_text(f"common_config: {{{algorithm}_quantize: {{}}}}")
    texts = set()
    for there in (False, True):
        monkeypatch.setattr(reduction, "counts_there", lambda device, there=there: there)
        folder = tmp_path / str(there)
        folder.mkdir()
        config, one_call, filled_record = folder / "config.json", folder / "one.txt", folder / "filled.txt"
        amct.create_quant_config(config, small_net, batches[0], batch_num=8, config_defination=settings)
        module = amct.quantize_model(config, folder / "modified.onnx", filled_record, small_net, batches[0])
        for batch in batches:
            module(batch)
        twinquant.calibrate(small_net, batches, one_call, config=config, batch_num=8, example_inputs=batches[0])
        texts |= {one_call.read_text(), filled_record.read_text()}
    assert len(texts) == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_gpu_counts_as_numpy_does(algorithm):
    device = torch.device("cuda")
    assert device_trial.objection_to(device) is None

    def on_gpu(station, values):
        part = reduced(values.to(device), station)
        assert isinstance(part, Accumulated)
        observe(station, part)

    batches = [randn((1 << 19,), seed) for seed in range(2)]
    assert states(watch_of(algorithm=algorithm), batches, on_gpu) == states(
        watch_of(algorithm=algorithm), batches, whole
    )
