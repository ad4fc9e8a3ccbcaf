"""Lists, generators and data loaders."""

from __future__ import annotations

import errno
import pickle
from collections import UserDict

import numpy as np
import pytest

from twinquant.data import length_of
from twinquant.errors import ArgumentError, DataError, OutputWriteError
from twinquant.registry import ModelInput

BATCHES = [np.full((2, 3), number, np.float32) for number in range(5)]


class ShufflingLoader:
    """As a data loader that shuffles: every time it is iterated over, another order comes."""

    def __init__(self):
        self.order = list(range(5))

    def __len__(self):
        return 5

    def __iter__(self):
        self.order.reverse()
        return ((BATCHES[number], "labels") for number in self.order)


def values(source, numbers):
    return [float(source.batch(number)["x"][0, 0]) for number in numbers]


def test_a_generator_can_be_gone_through_again(opened, vector):
    source = opened((batch for batch in BATCHES), vector)
    assert source.count is None
    assert values(source, [0, 1, 2, 0, 1, 2, 3, 4, 0]) == [0, 1, 2, 0, 1, 2, 3, 4, 0]
    assert source.batch(5) is None


def test_a_generator_that_is_needed_once_leaves_no_file(opened, vector, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    source = opened((batch for batch in BATCHES), vector, repeated=False)
    assert values(source, range(5)) == [0, 1, 2, 3, 4]
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataError, match="batch 1 is gone, the data can be gone through only once"):
        source.batch(0)


def test_closing_deletes_the_temporary_file(opened, vector, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    source = opened(iter(BATCHES), vector)
    source.batch(0)
    assert len(list(tmp_path.iterdir())) == 1
    source.close()
    assert list(tmp_path.iterdir()) == []


def test_a_loader_that_shuffles_is_gone_through_once_and_remembered(opened, vector):
    source = opened(ShufflingLoader(), vector)
    assert source.count == 5
    first = values(source, range(5))
    assert sorted(first) == [0, 1, 2, 3, 4]
    assert values(source, range(5)) == first


class Dataset:
    """As a map-style dataset: items by number, as many as it says, and other ones each time."""

    def __init__(self):
        self.asked = 0

    def __len__(self):
        return 5

    def __getitem__(self, number):
        self.asked += 1
        return BATCHES[number % 5] + self.asked, "label"


class EndlessLoader:
    """As a torch DataLoader over a stream: it has `__len__`, which raises."""

    def __init__(self, error):
        self.error = error

    def __len__(self):
        raise self.error("object of type 'Stream' has no len()")

    def __iter__(self):
        return iter(BATCHES)


@pytest.mark.parametrize("error", [TypeError, NotImplementedError])
def test_a_loader_that_does_not_know_its_length_is_gone_through_as_a_stream(opened, vector, error):
    source = opened(EndlessLoader(error), vector)
    assert source.count is None
    assert values(source, range(5)) == [0, 1, 2, 3, 4]


def test_the_length_of_something_is_what_it_says_if_it_says_it():
    assert [length_of(items) for items in ([], ShufflingLoader(), iter(BATCHES), None)] == [0, 5, None, None]
    assert length_of(EndlessLoader(TypeError)) is None


def test_a_dataset_that_does_not_know_its_length_is_an_error(opened, vector):
    class Unending(Dataset):
        def __len__(self):
            raise NotImplementedError

    with pytest.raises(ArgumentError, match="an iterable or dataset of batches, got Unending"):
        opened(Unending(), vector)


def test_a_dataset_that_augments_is_gone_through_once_and_remembered(opened, vector):
    source = opened(Dataset(), vector)
    assert source.count == 5
    first = values(source, range(5))
    assert first == [1, 3, 5, 7, 9]
    assert values(source, range(5)) == first
    assert source.batch(5) is None


def test_what_an_iterable_raises_passes_as_it_is(opened, vector):
    def breaks():
        yield BATCHES[0]
        raise ConnectionError("the camera is gone")

    source = opened(breaks(), vector)
    source.batch(0)
    with pytest.raises(ConnectionError, match="the camera is gone"):
        source.batch(1)


def test_an_empty_generator_has_no_batch_in_other_processes_either(opened, vector):
    assert opened(iter(()), vector).for_processes(4).count == 0


def test_a_full_disk_is_an_error_that_says_what_to_do(opened, vector, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("numpy.lib.format.write_array", full)
    with pytest.raises(OutputWriteError, match=r"temporary file: No space left on device; set TMPDIR"):
        opened(iter(BATCHES), vector).batch(0)


def test_a_wrong_batch_is_named_by_its_number(opened, vector):
    source = opened(iter([BATCHES[0], np.zeros((2, 4), np.float32)]), vector)
    source.batch(0)
    with pytest.raises(DataError, match="data, batch 2, input 'x'"):
        source.batch(1)


def test_element_types_survive_the_temporary_file(opened):
    inputs = [ModelInput("x", "float16", (None, 3)), ModelInput("n", "int32", ())]
    items = [{"x": np.full((1, 3), 0.5, np.float16), "n": np.int32(number)} for number in range(3)]
    source = opened(iter(items), inputs)
    source.batch(2)
    feeds = source.batch(1)
    assert {name: array.dtype.name for name, array in feeds.items()} == {"x": "float16", "n": "int32"}
    assert feeds["n"].shape == ()
    assert int(feeds["n"]) == 1


@pytest.mark.parametrize("make", [list, iter], ids=["list", "generator"])
def test_batches_may_be_mappings_of_any_type(opened, vector, make):
    source = opened(make([UserDict(x=batch) for batch in BATCHES]), vector)
    assert values(source, range(5)) == [0, 1, 2, 3, 4]


def test_the_data_may_be_a_mapping_of_any_type(opened, vector):
    assert values(opened(UserDict(x=np.concatenate(BATCHES)), vector, batch_size=2), range(5)) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("make", [list, iter], ids=["list", "generator"])
def test_what_goes_to_other_processes_holds_the_same_batches(opened, vector, make):
    source = opened(make(BATCHES), vector)
    there = pickle.loads(pickle.dumps(source.for_processes(4)))
    assert there.count == 4
    assert values(there, [3, 0, 2]) == [3, 0, 2]
    assert there.batch(4) is None
