"""Whole arrays, in memory and in files, cut into batches."""

from __future__ import annotations

import pickle
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from twinquant.errors import ArgumentError, DataError
from twinquant.registry import ModelInput

SAMPLES = np.arange(30, dtype=np.float32).reshape(10, 3)


@pytest.fixture(params=["array", "dict", "npy", "npz", "compressed npz", "fortran npy"])
def ten_samples(request, tmp_path):
    """Ten samples of three numbers, in every form that an array of samples may have."""
    path = tmp_path / ("samples.npz" if "npz" in request.param else "samples.npy")
    if request.param == "array":
        return SAMPLES
    if request.param == "dict":
        return {"x": SAMPLES}
    if request.param == "npy":
        np.save(path, SAMPLES)
    elif request.param == "fortran npy":
        np.save(path, np.asfortranarray(SAMPLES))
    else:
        (np.savez if request.param == "npz" else np.savez_compressed)(path, x=SAMPLES)
    return path


def test_samples_are_cut_into_batches_of_the_given_size_and_the_last_one_may_be_shorter(opened, vector, ten_samples):
    source = opened(ten_samples, vector, batch_size=4)
    assert source.count == 3
    np.testing.assert_array_equal(source.batch(0)["x"], SAMPLES[:4])
    np.testing.assert_array_equal(source.batch(1)["x"], SAMPLES[4:8])
    np.testing.assert_array_equal(source.batch(2)["x"], SAMPLES[8:])
    assert source.batch(3) is None
    assert source.rest == ""


def test_batches_can_be_read_in_any_order_and_again(opened, vector, ten_samples):
    source = opened(ten_samples, vector, batch_size=2)
    for number in (4, 0, 4, 2):
        np.testing.assert_array_equal(source.batch(number)["x"], SAMPLES[2 * number : 2 * number + 2])


@pytest.mark.parametrize(
    ("batch_num", "sizes"), [(1, [10]), (2, [5, 5]), (3, [3, 3, 4]), (10, [1] * 10), (99, [1] * 10)]
)
def test_without_a_size_all_samples_are_divided_among_the_batches_that_calibration_wants(
    opened, vector, batch_num, sizes
):
    source = opened(SAMPLES, vector, batch_num=batch_num)
    batches = [source.batch(number)["x"] for number in range(source.count)]
    assert [len(batch) for batch in batches] == sizes
    np.testing.assert_array_equal(np.concatenate(batches), SAMPLES)


def test_samples_that_do_not_fill_a_batch_of_the_model_are_told_of(opened):
    source = opened(SAMPLES, [ModelInput("x", "float32", (4, 3))])
    assert source.count == 2
    assert source.rest == "the last 2 of 10 samples do not fill a batch of 4, which the model fixes"


def test_an_open_input_with_as_many_rows_as_a_fixed_one_is_cut_like_it(opened):
    inputs = [ModelInput("x", "float32", (4, 3)), ModelInput("ids", "int64", ("N",))]
    source = opened({"x": SAMPLES, "ids": np.arange(10)}, inputs)
    assert [source.batch(number)["ids"].tolist() for number in range(source.count)] == [[0, 1, 2, 3], [4, 5, 6, 7]]


@pytest.mark.parametrize("length", [None, 4], ids=["open", "fixed"])
@pytest.mark.parametrize("batch_size", [None, 4])
def test_different_numbers_of_samples_are_an_error_that_names_both(opened, length, batch_size):
    inputs = [ModelInput("x", "float32", (length, 3)), ModelInput("y", "float32", (length, 3))]
    with pytest.raises(DataError, match=re.escape("different numbers of samples: 'x' [10, 3], 'y' [9, 3]")):
        opened({"x": SAMPLES, "y": SAMPLES[:9]}, inputs, batch_size=batch_size)


def test_the_length_that_the_model_fixes_wins(opened):
    source = opened(SAMPLES, [ModelInput("x", "float32", (5, 3))], batch_num=10)
    assert [source.batch(number)["x"].shape for number in range(source.count)] == [(5, 3), (5, 3)]


def test_a_size_that_contradicts_the_model_is_an_error(opened):
    with pytest.raises(DataError, match="the model takes batches of 5, batch_size is 2"):
        opened(SAMPLES, [ModelInput("x", "float32", (5, 3))], batch_size=2)


def test_fewer_samples_than_the_model_takes_at_once_are_an_error(opened):
    with pytest.raises(DataError, match="input 'x': 10 samples, but the model takes 16 at once"):
        opened(SAMPLES, [ModelInput("x", "float32", (16, 3))])


def test_one_axis_more_than_the_input_counts_batches(opened, vector):
    source = opened({"x": SAMPLES.reshape(5, 2, 3)}, vector, batch_num=2)
    assert source.count == 5
    np.testing.assert_array_equal(source.batch(3)["x"], SAMPLES[6:8])


def test_a_state_with_its_batch_in_another_axis_is_one_batch_beside_its_input(opened):
    inputs = [ModelInput("x", "float32", (2, 3)), ModelInput("h", "float32", (1, 2, 4))]
    source = opened({"x": SAMPLES[:2], "h": np.zeros((1, 2, 4), np.float32)}, inputs, batch_num=1)
    assert source.count == 1
    assert {name: array.shape for name, array in source.batch(0).items()} == {"x": (2, 3), "h": (1, 2, 4)}


def test_an_open_input_is_cut_into_as_many_batches_as_the_others_have(opened):
    inputs = [ModelInput("x", "float32", (None, 3)), ModelInput("h", "float32", (1, None, 4))]
    source = opened({"x": SAMPLES, "h": np.zeros((5, 2, 4), np.float32)}, inputs, batch_num=1)
    assert source.count == 5
    assert source.batch(4)["x"].shape == (2, 3)


def test_a_scalar_is_part_of_every_batch(opened):
    inputs = [ModelInput("x", "float32", (None, 3)), ModelInput("scale", "float32", ())]
    source = opened({"x": SAMPLES, "scale": np.float32(2)}, inputs, batch_size=5)
    assert [float(source.batch(number)["scale"]) for number in range(2)] == [2.0, 2.0]


def test_different_numbers_of_batches_are_an_error_that_names_both(opened):
    inputs = [ModelInput("x", "float32", (2, 3)), ModelInput("y", "float32", (1, 3))]
    with pytest.raises(DataError, match=re.escape("'x' [10, 3] has 5, 'y' [10, 3] has 10")):
        opened({"x": SAMPLES, "y": SAMPLES}, inputs)


def test_a_wrong_name_in_an_archive_is_an_error_that_names_the_inputs(opened, vector, tmp_path):
    np.savez(tmp_path / "data.npz", image=SAMPLES)
    with pytest.raises(DataError, match="the model has no input 'image'; it has 'x'"):
        opened(tmp_path / "data.npz", vector)


def test_a_truncated_file_is_an_error_that_names_it(opened, vector, tmp_path):
    np.save(tmp_path / "short.npy", SAMPLES)
    whole = (tmp_path / "short.npy").read_bytes()
    (tmp_path / "short.npy").write_bytes(whole[:-8])
    source = opened(tmp_path / "short.npy", vector, batch_size=5)
    with pytest.raises(DataError, match=r"short\.npy' cannot be read .*truncated"):
        source.batch(1)


@pytest.mark.parametrize("content", [b"", b"not an array", b"PK\x03\x04 not an archive"])
@pytest.mark.parametrize("name", ["bad.npy", "bad.npz"])
def test_a_file_that_is_no_array_is_an_error_that_names_it(opened, vector, tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=f"{re.escape(name)}' cannot be read as an .np"):
        opened(tmp_path / name, vector)


def test_python_objects_are_refused(opened, vector, tmp_path):
    np.save(tmp_path / "objects.npy", np.array([{}, []], object), allow_pickle=True)
    with pytest.raises(DataError, match="holds Python objects"):
        opened(tmp_path / "objects.npy", vector)


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ("", DataError, "the path is empty"),
        ("nowhere", DataError, "there is no file or folder"),
        (__file__, DataError, "is neither a folder nor an .npz or .npy file"),
        ([], DataError, "the list is empty"),
        (7, ArgumentError, "must be a folder, an .npz or .npy file, arrays by input name, or an iterable or dataset"),
    ],
    ids=["no path", "missing", "other", "empty", "number"],
)
def test_what_is_no_data_is_an_error(opened, vector, data, error, message):
    with pytest.raises(error, match=re.escape(message)):
        opened(data, vector)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size: must be a whole number above 0, got 0"),
        ({"batch_size": 2.0}, "batch_size: must be a whole number above 0, got 2.0"),
        ({"mean": (1.0, float("nan"))}, "mean: must be a finite number"),
        ({"mean": "120"}, "mean: must be a finite number"),
        ({"std": (1.0, 0.0, 1.0)}, "std: must be numbers above 0"),
        ({"layout": "NCWH"}, "layout: must be one of NCHW, NHWC, got 'NCWH'"),
        ({"size": (0, 4)}, "size: must be"),
        ({"size": 8}, "size: must be"),
        ({"channel_order": "GBR"}, "channel_order: must be one of RGB, BGR, got 'GBR'"),
    ],
)
def test_impossible_options_are_an_error(opened, vector, options, message):
    with pytest.raises(ArgumentError, match=message):
        opened(SAMPLES, vector, **options)


@pytest.mark.parametrize("save", [np.save, np.savez_compressed], ids=["npy", "compressed npz"])
def test_threads_that_share_a_source_each_get_their_batch(opened, tmp_path, save):
    samples = np.repeat(np.arange(300, dtype=np.float32)[:, None], 500, axis=1)
    path = tmp_path / ("samples.npy" if save is np.save else "samples.npz")
    if save is np.save:
        np.save(path, samples)
    else:
        np.savez_compressed(path, x=samples)
    source = opened(path, [ModelInput("x", "float32", (None, 500))], batch_size=1)
    numbers = np.random.default_rng(0).permutation(300).tolist() * 3
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as threads:
            batches = list(threads.map(source.batch, numbers))
    finally:
        sys.setswitchinterval(interval)
    for number, batch in zip(numbers, batches, strict=True):
        np.testing.assert_array_equal(batch["x"], samples[number : number + 1])


def test_a_source_that_is_in_use_can_be_sent_to_another_process(opened, vector, tmp_path):
    np.save(tmp_path / "samples.npy", SAMPLES)
    source = opened(tmp_path / "samples.npy", vector, batch_size=2)
    source.batch(0)
    copy = pickle.loads(pickle.dumps(source))
    np.testing.assert_array_equal(copy.batch(3)["x"], SAMPLES[6:8])
    copy.close()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("mean", (100.0,)),
        ("std", (50.0, 50.0, 50.0)),
        ("size", (8, 8)),
        ("channel_order", "BGR"),
        ("layout", "NCHW"),
        ("skip_broken", True),
    ],
)
@pytest.mark.parametrize("form", ["array", "list", "generator", "npy", "folder"])
def test_an_option_for_images_is_an_error_with_arrays(opened, vector, tmp_path, form, option, value):
    np.save(tmp_path / "samples.npy", SAMPLES)
    data = {
        "array": SAMPLES,
        "list": [SAMPLES],
        "generator": iter([SAMPLES]),
        "npy": tmp_path / "samples.npy",
        "folder": tmp_path,
    }[form]
    with pytest.raises(ArgumentError, match=rf"^{option}: is for folders of images, .*and leave {option} out$"):
        opened(data, vector, **{option: value})


def test_options_for_images_at_their_defaults_say_nothing(opened, vector):
    assert opened(SAMPLES, vector, mean=(0.0, 0.0, 0.0), std=1, batch_size=5).count == 2
