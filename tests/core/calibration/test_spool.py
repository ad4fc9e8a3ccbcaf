"""The batches that a modified model was fed, in files."""

import os
import subprocess
import sys

import numpy as np
import pytest

from twinquant.calibration.spool import BatchSpool, remove_batches
from twinquant.errors import ArgumentError


@pytest.fixture
def spool(tmp_path):
    """An open spool of two inputs."""
    opened = BatchSpool(tmp_path / "sub" / "batches", ["image", "length"])
    opened.open()
    return opened


def arrays(number):
    return [np.full((2, 3), number, np.float32), np.arange(number + 1)]


def test_batches_come_back_in_their_order_with_their_types_and_shapes(spool):
    for number in range(3):
        spool.add(arrays(number))
    for number in range(3):
        found = spool.batch(number)
        assert list(found) == ["image", "length"]
        for wanted, array in zip(arrays(number), found.values(), strict=True):
            np.testing.assert_array_equal(array, wanted)
            assert array.dtype == wanted.dtype
    assert spool.batch(3) is None


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 7, 8, 9, 33])
def test_the_batches_are_counted(spool, count):
    for number in range(count):
        spool.add(arrays(number))
    assert spool.count == count


def test_counting_looks_at_few_files_however_many_there_are(spool, monkeypatch):
    for number in range(1000):
        spool.add(arrays(number))
    looked = []
    is_whole = BatchSpool._is_whole
    monkeypatch.setattr(BatchSpool, "_is_whole", lambda self, number: looked.append(number) or is_whole(self, number))
    assert spool.count == 1000
    assert len(looked) < 30


def test_a_batch_counts_when_its_last_input_is_there(spool):
    assert not spool.add_input("image", arrays(0)[0])
    assert (spool.count, spool.batch(0)) == (0, None)
    assert spool.add_input("length", arrays(0)[1])
    assert spool.count == 1


def test_an_input_that_comes_again_replaces_the_one_of_the_unfinished_batch(spool):
    spool.add_input("image", arrays(7)[0])
    spool.add_input("image", arrays(1)[0])
    spool.add_input("length", arrays(1)[1])
    np.testing.assert_array_equal(spool.batch(0)["image"], arrays(1)[0])
    assert spool.count == 1


def test_a_second_spool_of_the_same_process_goes_on(spool):
    spool.add(arrays(0))
    other = BatchSpool(spool.folder, ["image", "length"])
    assert (other.open(), other.count) == (0, 1)


def test_a_spool_that_another_process_left_is_emptied_when_it_is_opened(spool):
    code = f"""
import numpy as np
from pathlib import Path
from twinquant.calibration.spool import BatchSpool
spool = BatchSpool(Path({str(spool.folder)!r}), ["image", "length"])
spool.open()
for number in range(2):
    spool.add([np.zeros(1), np.zeros(1)])
spool.fail("broken")
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert not spool.is_open
    assert spool.failure() == "broken"
    assert spool.open() == 2
    assert (spool.count, spool.failure(), spool.is_open) == (0, None, True)


def test_a_forked_process_is_another_one(spool, monkeypatch):
    spool.add(arrays(0))
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert not spool.is_open
    assert spool.open() == 1


def test_a_cleared_spool_is_gone_and_counts_nothing(spool):
    spool.add(arrays(0))
    spool.clear()
    spool.clear()
    assert not spool.folder.exists()
    assert (spool.count, spool.is_open) == (0, False)


def test_a_spool_is_removed_by_its_folder_alone(spool):
    spool.add(arrays(0))
    remove_batches(spool.folder)
    remove_batches(spool.folder)
    assert not spool.folder.exists()


def test_a_spool_of_no_input_is_an_error(tmp_path):
    with pytest.raises(ArgumentError, match="name at least one input"):
        BatchSpool(tmp_path, ())
