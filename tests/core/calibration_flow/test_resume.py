"""A calibration that was cut off goes on where it was."""

from __future__ import annotations

import logging
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest

import twinquant
from twinquant.calibration.options import ObserverOptions
from twinquant.calibration.resume import Checkpoint, Snapshot
from twinquant.calibration.station import Station
from twinquant.calibration.watches import Watch
from twinquant.errors import DataError, ModelContentError, OutputWriteError
from twinquant.registry import Tap

ALGORITHMS = ["minmax", "ifmr", "hfmg"]


class CutOff(Exception):
    """Stands for whatever ends a run."""


@pytest.fixture(autouse=True)
def save_after_every_batch(monkeypatch):
    monkeypatch.setattr("twinquant.calibration.resume.SAVE_SECONDS", 0.0)


@pytest.fixture
def record(model):
    return model.with_name("record.txt")


@pytest.fixture
def state(model):
    return model.with_name("record.txt.unfinished")


def cut_off(number_of_pass, batch):
    """Make a progress function that ends the run when a batch of a pass is done."""

    def progress(words, _):
        if f"pass {number_of_pass}, batch {batch} of" in words:
            raise CutOff

    return progress


def config(algorithm):
    # Settings with which ifmr, too, needs a second pass: the limits lie deep inside.
    deep = {"max_percentile": 0.6, "min_percentile": 0.6} if algorithm == "ifmr" else {}
    return {"activation_algorithm": algorithm, **deep, "layers": {"b": {"dmq_migration_strength": 0.4}}}


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("number_of_pass", "batch"), [(1, 1), (1, 4), (2, 2)])
@pytest.mark.parametrize("make", [list, iter], ids=["list", "generator"])
def test_cut_off_and_resumed_equals_uninterrupted(
    toy, model, batches, record, state, algorithm, number_of_pass, batch, make
):
    settings = {"config": config(algorithm), "batch_num": 4}
    twinquant.calibrate(model, batches, record, **settings, resume=False)
    expected = record.read_bytes()
    record.write_text("the old record")
    with pytest.raises(CutOff):
        twinquant.calibrate(model, make(batches), record, **settings, progress=cut_off(number_of_pass, batch))
    assert state.exists()
    assert record.read_text() == "the old record"
    twinquant.calibrate(model, make(batches), record, **settings)
    assert record.read_bytes() == expected
    assert not state.exists()


def test_batches_that_were_seen_are_not_run_again(toy, model, batches, record):
    observed = []
    original = toy.activations

    def activations(graph, taps, *, threads=None):
        run = original(graph, taps)

        def counted(feeds):
            observed.append(feeds["x"][0, 0])
            return run(feeds)

        return counted

    toy.activations = activations
    settings = {"config": {"activation_algorithm": "minmax"}, "batch_num": 4}
    with pytest.raises(CutOff):
        twinquant.calibrate(model, batches, record, **settings, progress=cut_off(1, 3))
    twinquant.calibrate(model, batches, record, **settings)
    assert observed == [batch[0, 0] for batch in batches]


@pytest.mark.parametrize("change", ["model", "config", "batch_num", "data outline"])
def test_the_state_of_another_calibration_is_not_used(toy, model, batches, record, state, change, caplog):
    with pytest.raises(CutOff):
        twinquant.calibrate(model, batches, record, batch_num=3, progress=cut_off(1, 2))
    settings = {"batch_num": 3}
    if change == "model":
        model.write_text("another net")
    elif change == "config":
        settings["config"] = {"asymmetric": False}
    elif change == "batch_num":
        settings["batch_num"] = 4
    else:
        batches = [*batches, batches[0]]
    with caplog.at_level(logging.INFO):
        twinquant.calibrate(model, batches, record, **settings)
    assert "is of another calibration; starting from the beginning" in caplog.text
    assert not state.exists()


@pytest.mark.parametrize("algorithm", ["minmax", "hfmg"])
@pytest.mark.parametrize(("number_of_pass", "batch"), [(1, 2), (2, 1)])
@pytest.mark.parametrize("make", [list, iter], ids=["list", "generator"])
@pytest.mark.parametrize("workers", [1, ThreadPoolExecutor], ids=["here", "in workers"])
def test_with_other_data_than_before_calibration_starts_anew(
    toy, model, batches, record, algorithm, number_of_pass, batch, make, workers, caplog
):
    if (algorithm, number_of_pass) == ("minmax", 2):
        number_of_pass, batch = 1, 4
    settings = {"config": {"activation_algorithm": algorithm}, "batch_num": 4}
    with pytest.raises(CutOff):
        twinquant.calibrate(model, make(batches), record, **settings, progress=cut_off(number_of_pass, batch))
    other = [batches[0], batches[1] * 100, *batches[2:]]
    with ExitStack() as stack:
        engine = workers if workers == 1 else stack.enter_context(workers(2))
        twinquant.calibrate(model, make(other), record, **settings, workers=engine)
    assert "data: batch 2 is not the one that the calibration which was cut off saw" in caplog.text
    found = record.read_bytes()
    twinquant.calibrate(model, other, record, **settings, resume=False)
    assert record.read_bytes() == found


def test_weights_that_cannot_be_quantized_are_told_of_before_the_data_is_read(toy, model, batches, record):
    weight = toy.load(model)["a"]
    spoiled = weight.copy()
    spoiled[1, 0] = np.nan
    toy.load = lambda source: {"a": weight, "b": spoiled}
    with pytest.raises(ModelContentError, match="layer 'b'"):
        twinquant.calibrate(model, batches, record, batch_num=4)
    assert toy.runs == []


def test_a_damaged_state_is_a_warning_and_a_new_start(toy, model, batches, record, state, caplog):
    state.write_bytes(b"PK\x03\x04 nothing")
    twinquant.calibrate(model, batches, record, batch_num=4)
    assert "cannot be read" in caplog.text
    assert not state.exists()


def test_data_that_changes_between_passes_is_an_error(toy, model, batches, record):
    def change(words, _):
        if "pass 1, batch 4 of" in words:
            batches[1][0, 0] += 1

    settings = {"config": {"activation_algorithm": "hfmg"}, "batch_num": 4}
    with pytest.raises(DataError, match="batch 2 is not what it was in an earlier pass"):
        twinquant.calibrate(model, batches, record, **settings, progress=change)


def test_without_resume_no_state_is_written(toy, model, batches, record, state):
    with pytest.raises(CutOff):
        twinquant.calibrate(model, batches, record, batch_num=4, resume=False, progress=cut_off(1, 2))
    assert not state.exists()


def test_quantize_keeps_its_state_beside_the_future_record(toy, model, batches, tmp_path):
    with pytest.raises(CutOff):
        twinquant.quantize(model, batches, tmp_path / "out" / "net", batch_num=4, progress=cut_off(1, 2))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["net_record.txt.unfinished"]
    twinquant.quantize(model, batches, tmp_path / "out" / "net", batch_num=4)
    assert not (tmp_path / "out" / "net_record.txt.unfinished").exists()


def test_a_snapshot_is_stored_without_a_copy_of_everything(tmp_path):
    generator = np.random.default_rng(0)
    watches = [Watch(Tap(f"layer{number}"), (f"layer{number}",), ObserverOptions()) for number in range(24)]
    snapshot = Snapshot([Station(watch) for watch in watches], digests={0: "digest"}, done={0})
    for station in snapshot.stations:
        station.observe(generator.normal(size=1 << 18).astype(np.float32))
    states = [station.state() for station in snapshot.stations]
    every_byte = sum(array.nbytes for state in states for array in state.values())
    path = tmp_path / "record.txt.unfinished"
    tracemalloc.start()
    try:
        Checkpoint(path, "key").save(snapshot)
        assert tracemalloc.get_traced_memory()[1] < every_byte / 8
        tracemalloc.reset_peak()
        restored = Checkpoint(path, "key").load(watches)
    finally:
        tracemalloc.stop()
    assert restored is not None
    assert (restored.done, restored.digests, restored.number_of_pass) == ({0}, {0: "digest"}, 1)
    for station, state in zip(restored.stations, states, strict=True):
        again = station.state()
        assert {name: array.tobytes() for name, array in again.items()} == {n: a.tobytes() for n, a in state.items()}


@pytest.mark.parametrize("header", ["[]", '"text"', "7", '{"key": "key"}', '{"key": "key", "digests": [], "pass": 1}'])
def test_a_state_that_is_none_is_not_gone_on_with(tmp_path, caplog, header):
    path = tmp_path / "record.txt.unfinished"
    with path.open("wb") as file:
        np.savez(file, header=np.frombuffer(header.encode(), np.uint8))
    assert Checkpoint(path, "key").load([]) is None
    assert "cannot be read" in caplog.text


def test_the_digests_of_many_batches_take_a_byte_a_character(tmp_path):
    digests = {number: f"{number:064x}" for number in range(1000)}
    path = tmp_path / "record.txt.unfinished"
    Checkpoint(path, "key, \N{GREEK SMALL LETTER KAPPA}").save(Snapshot([], digests=digests))
    assert path.stat().st_size < 1000 * 64 * 1.25
    assert Checkpoint(path, "key, \N{GREEK SMALL LETTER KAPPA}").load([]).digests == digests


def test_what_a_killed_run_was_writing_is_gone_when_a_later_one_is_through(toy, model, batches, record):
    code = f"""
import os
from pathlib import Path
from twinquant.replacing import replacing
with replacing(Path({str(record)!r} + ".unfinished")):
    os._exit(1)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    assert len(list(record.parent.glob(".*.part"))) == 1
    twinquant.calibrate(model, batches, record, batch_num=4)
    assert list(record.parent.glob(".*.part")) == []


def test_an_array_in_the_place_of_a_state_is_not_gone_on_with(tmp_path, caplog):
    path = tmp_path / "record.txt.unfinished"
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    assert Checkpoint(path, "key").load([]) is None
    assert "cannot be read" in caplog.text


def test_a_folder_in_the_place_of_the_state_is_told_of_before_anything_is_run(toy, model, batches, record, state):
    state.mkdir()
    with pytest.raises(OutputWriteError, match=r"record\.txt\.unfinished' is a folder.*resume=False"):
        twinquant.calibrate(model, batches, record, batch_num=4)
    assert not record.exists()


def test_a_state_behind_a_link_is_removed_and_the_link_stays(tmp_path, caplog):
    real, link = tmp_path / "real" / "state", tmp_path / "link"
    real.parent.mkdir()
    link.symlink_to(real)
    checkpoint = Checkpoint(link, "key")
    checkpoint.save(Snapshot([]))
    checkpoint.discard()
    assert link.is_symlink() and not list(real.parent.iterdir())
    (tmp_path / "file").touch()
    Checkpoint(tmp_path / "file" / "state", "key").discard()
    assert "cannot be removed" in caplog.text
