"""Folders of .npy and .npz files."""

from __future__ import annotations

import re

import numpy as np
import pytest

from twinquant.errors import DataError
from twinquant.registry import ModelInput


@pytest.fixture
def samples(tmp_path):
    """Five .npy files, one sample each, not written in the order of their names."""
    for number in (3, 0, 4, 1, 2):
        np.save(tmp_path / f"sample{number}.npy", np.full(3, number, np.float32))
    return tmp_path


def first_column(source):
    return [source.batch(number)["x"][:, 0].tolist() for number in range(source.count)]


def test_samples_come_in_the_order_of_their_names_one_by_one(opened, vector, samples):
    assert first_column(opened(samples, vector)) == [[0], [1], [2], [3], [4]]


def test_samples_are_stacked_to_batches(opened, vector, samples):
    assert first_column(opened(samples, vector, batch_size=2)) == [[0, 1], [2, 3], [4]]


def test_samples_that_do_not_fill_a_batch_of_the_model_are_told_of(opened, samples):
    source = opened(samples, [ModelInput("x", "float32", (2, 3))])
    assert first_column(source) == [[0, 1], [2, 3]]
    assert source.rest == "the last 1 of 5 files do not fill a batch of 2, which the model fixes"


def test_fewer_samples_than_the_model_takes_at_once_are_told_of(opened, samples):
    source = opened(samples, [ModelInput("x", "float32", (8, 3))])
    assert source.count == 0
    assert source.rest == "the 5 files do not fill a batch of 8, which the model fixes"


def test_samples_are_stacked_to_the_length_that_the_model_fixes(opened, samples):
    assert first_column(opened(samples, [ModelInput("x", "float32", (5, 3))])) == [[0, 1, 2, 3, 4]]


def test_samples_of_different_lengths_are_an_error_that_names_the_file(opened, vector, samples):
    np.save(samples / "sample1.npy", np.zeros(4, np.float32))
    with pytest.raises(DataError, match=r"sample0\.npy: its array and those of the 1 files after it"):
        opened(samples, vector, batch_size=2).batch(0)


def test_archives_are_batches_by_input_name_also_in_subfolders(opened, tmp_path):
    inputs = [ModelInput("x", "float32", (None, 3)), ModelInput("ids", "int64", (None,))]
    (tmp_path / "sub").mkdir()
    for number, folder in enumerate((tmp_path, tmp_path / "sub")):
        np.savez(folder / "batch.npz", x=np.full((2, 3), number, np.float32), ids=np.arange(4))
    source = opened(tmp_path, inputs)
    assert first_column(source) == [[0, 0], [1, 1]]
    assert source.batch(0)["ids"].tolist() == [0, 1, 2, 3]


def test_a_file_that_does_not_fit_is_named(opened, vector, samples):
    np.save(samples / "sample2.npy", np.zeros((1, 4), np.float32))
    source = opened(samples, vector)
    with pytest.raises(DataError, match=re.escape("sample2.npy, input 'x': the data have shape [1, 4]")):
        source.batch(2)


def test_a_damaged_file_is_named(opened, vector, samples):
    (samples / "sample2.npy").write_bytes(b"oops")
    with pytest.raises(DataError, match=r"sample2\.npy' cannot be read as an \.npy file"):
        opened(samples, vector).batch(2)


def test_hidden_and_other_files_do_not_count(opened, vector, samples):
    (samples / ".sample9.npy").write_bytes(b"")
    (samples / "labels.txt").write_text("0 1 2 3 4")
    assert opened(samples, vector).count == 5


def test_the_endings_of_files_may_be_capitals(opened, vector, samples):
    for path in list(samples.iterdir()):
        path.rename(path.with_suffix(".NPY"))
    assert first_column(opened(samples, vector)) == [[0], [1], [2], [3], [4]]
    one = opened(samples / "sample3.NPY", [ModelInput("x", "float32", (3,))])
    assert one.batch(0)["x"].tolist() == [3, 3, 3]


def test_the_ending_of_an_archive_may_be_capitals(opened, vector, tmp_path):
    with (tmp_path / "batch.NPZ").open("wb") as file:
        np.savez(file, x=np.ones((2, 3), np.float32))
    assert first_column(opened(tmp_path, vector)) == [[1, 1]]
    assert first_column(opened(tmp_path / "batch.NPZ", vector, batch_size=2)) == [[1, 1]]


def test_a_folder_without_data_is_an_error_that_lists_the_types(opened, vector, tmp_path):
    (tmp_path / "labels.txt").write_text("0")
    with pytest.raises(DataError, match=r"holds no calibration data; files of these types are read: .*\.jpg.*\.npz"):
        opened(tmp_path, vector)


def test_images_and_arrays_in_one_folder_are_an_error(opened, vector, samples):
    (samples / "cat.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"holds images \(cat\.png\) and arrays \(sample0\.npy\)"):
        opened(samples, vector)


def test_the_outline_changes_with_the_files(opened, vector, samples):
    before = opened(samples, vector).outline
    assert opened(samples, vector).outline == before
    (samples / "sample4.npy").rename(samples / "sample5.npy")
    assert opened(samples, vector).outline != before
