"""Folders of images."""

from __future__ import annotations

import logging
import re
import sys

import numpy as np
import pytest

from twinquant.errors import ArgumentError, DataError
from twinquant.registry import ModelInput

image = pytest.importorskip("PIL.Image")

MEAN, STD = (10.0, 20.0, 30.0), (2.0, 4.0, 8.0)


def pixels(number, height=4, width=6):
    random = np.random.default_rng(number)
    return random.integers(0, 256, (height, width, 3), np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Four pictures of 4 x 6 pixels, without loss."""
    for number in range(4):
        image.fromarray(pixels(number)).save(tmp_path / f"{number}.png")
    return tmp_path


def test_a_picture_is_normalized_by_channel_and_laid_out_as_the_model_takes_it(opened, folder, picture_input):
    source = opened(folder, [picture_input], mean=MEAN, std=STD)
    expected = ((pixels(2).astype(np.float64) - MEAN) / STD).transpose(2, 0, 1)[None]
    given = source.batch(2)["x"]
    assert given.dtype == np.float32
    np.testing.assert_allclose(given, expected, rtol=1e-6)


def test_channels_last_is_found_from_the_shape(opened, folder):
    source = opened(folder, [ModelInput("x", "float32", (1, 4, 6, 3))])
    np.testing.assert_array_equal(source.batch(1)["x"], pixels(1)[None])


def test_the_layout_can_be_named_where_the_shape_is_open(opened, folder):
    source = opened(folder, [ModelInput("x", "float32", None)], layout="NHWC")
    assert source.batch(0)["x"].shape == (1, 4, 6, 3)


def test_pictures_are_resized_to_what_the_model_fixes(opened, folder):
    source = opened(folder, [ModelInput("x", "float32", (1, 3, 8, 8))])
    expected = np.asarray(image.fromarray(pixels(0)).resize((8, 8), image.Resampling.BILINEAR))
    np.testing.assert_array_equal(source.batch(0)["x"][0], expected.transpose(2, 0, 1))


def test_pictures_are_resized_to_the_given_height_and_width(opened, folder):
    source = opened(folder, [ModelInput("x", "float32", (None, 3, None, None))], size=(2, 5), batch_size=4)
    assert source.batch(0)["x"].shape == (4, 3, 2, 5)


def test_a_model_with_one_channel_gets_grey_pictures(opened, folder):
    source = opened(folder, [ModelInput("x", "float32", (None, 1, 4, 6))])
    expected = np.asarray(image.fromarray(pixels(3)).convert("L"))
    np.testing.assert_array_equal(source.batch(3)["x"][0, 0], expected)


def test_an_integer_input_gets_the_pixels(opened, folder):
    source = opened(folder, [ModelInput("x", "uint8", (None, 3, 4, 6))])
    np.testing.assert_array_equal(source.batch(0)["x"][0], pixels(0).transpose(2, 0, 1))


def test_the_last_batch_has_the_pictures_that_are_left(opened, folder):
    source = opened(folder, [ModelInput("x", "float32", (None, 3, 4, 6))], batch_size=3)
    assert [source.batch(number)["x"].shape[0] for number in range(source.count)] == [3, 1]


@pytest.mark.parametrize("batch_num", [1, 9])
def test_pictures_that_do_not_fill_a_batch_of_the_model_are_told_of(opened, folder, batch_num):
    source = opened(folder, [ModelInput("x", "float32", (3, 3, 4, 6))], batch_num=batch_num)
    assert source.count == 1
    assert source.rest == "the last 1 of 4 images do not fill a batch of 3, which the model fixes"


def test_pictures_behind_those_that_are_wanted_are_no_rest(opened, folder):
    for number in range(4, 8):
        image.fromarray(pixels(number)).save(folder / f"{number}.png")
    assert opened(folder, [ModelInput("x", "float32", (3, 3, 4, 6))], batch_num=1).rest == ""


def test_pictures_of_different_sizes_cannot_make_a_batch(opened, folder):
    image.fromarray(pixels(9, height=5)).save(folder / "1.png")
    source = opened(folder, [ModelInput("x", "float32", (None, 3, None, None))], batch_size=2)
    with pytest.raises(DataError, match=r"0\.png: pictures of one batch have different sizes; give a size"):
        source.batch(0)


@pytest.fixture
def with_broken_ones(folder):
    """Of eight pictures two are broken: one is no picture, the other ends in the middle."""
    for number in range(4, 8):
        image.fromarray(pixels(number, 64, 64)).save(folder / f"{number}.jpg")
    (folder / "1.png").write_bytes(b"no picture")
    whole = (folder / "5.jpg").read_bytes()
    (folder / "5.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


def test_broken_pictures_are_an_error_that_lists_all_of_them(opened, with_broken_ones, picture_input):
    with pytest.raises(DataError, match=r"2 of 8 images are broken: 1\.png: .*; 5\.jpg: .*skip_broken"):
        opened(with_broken_ones, [picture_input], batch_num=6)


def test_broken_pictures_are_left_out_if_asked(opened, with_broken_ones, picture_input, caplog):
    with caplog.at_level(logging.WARNING):
        source = opened(with_broken_ones, [picture_input], batch_num=6, skip_broken=True)
    assert source.count == 6
    np.testing.assert_array_equal(source.batch(1)["x"][0], pixels(2).transpose(2, 0, 1))
    assert "2 of 8 images are broken" in caplog.text
    assert "they are left out" in caplog.text


def test_broken_pictures_that_are_not_needed_do_not_matter(opened, with_broken_ones, picture_input):
    assert opened(with_broken_ones, [picture_input], batch_num=1).count == 1


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        (
            [ModelInput("x", "float32", (1, 3, 4, 6)), ModelInput("n", "int64", (1,))],
            {},
            DataError,
            "images feed one input, the model has 'x', 'n'",
        ),
        ([ModelInput("x", "float32", (1, 3))], {}, DataError, "the input 'x' has shape [1, 3], images need four axes"),
        (
            [ModelInput("x", "float32", (1, 5, 4, 6))],
            {},
            DataError,
            "the input 'x' has shape [1, 5, 4, 6]; as NCHW it has 5 channels",
        ),
        (
            [ModelInput("x", "float32", (1, 3, 4, 6))],
            {"mean": (1.0, 2.0)},
            ArgumentError,
            "mean: has 2 values, but the model takes 3 channels",
        ),
        (
            [ModelInput("x", "uint8", (1, 3, 4, 6))],
            {"std": STD},
            ArgumentError,
            "std: the input 'x' is uint8 and takes the pixels as they are; leave std out",
        ),
        (
            [ModelInput("x", "int8", (1, 3, 4, 6))],
            {},
            DataError,
            "the input 'x' is int8, which does not hold pixels from 0 to 255; give arrays",
        ),
        (
            [ModelInput("x", "float32", (2, 3, 4, 6))],
            {"batch_size": 3},
            DataError,
            "the model takes batches of 2, batch_size is 3",
        ),
    ],
    ids=["inputs", "axes", "channels", "mean", "std of integers", "int8", "size"],
)
def test_a_model_that_takes_no_such_pictures_is_an_error(opened, folder, inputs, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        opened(folder, inputs, **options)


def test_without_pillow_the_error_says_what_to_install(opened, folder, picture_input, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ArgumentError, match=re.escape("pip install 'twinquant-core[images]'")):
        opened(folder, [picture_input])


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_of_16_bits_keeps_its_grays(opened, tmp_path, channels):
    values = np.arange(0, 65536, 65535 // 255, dtype=np.uint16).reshape(16, 16)
    image.fromarray(values).save(tmp_path / "deep.png")
    given = opened(tmp_path, [ModelInput("x", "float32", (1, channels, 16, 16))]).batch(0)["x"]
    np.testing.assert_array_equal(given, np.tile(np.arange(256, dtype=np.float32).reshape(16, 16), (1, channels, 1, 1)))


def test_one_mean_and_one_std_need_no_tuple(opened, folder, picture_input):
    given = opened(folder, [picture_input], mean=100.0, std=2).batch(0)["x"]
    np.testing.assert_array_equal(given[0], (pixels(0).astype(np.float32).transpose(2, 0, 1) - 100) / 2)


def test_blue_comes_first_where_the_model_takes_it_first(opened, folder, picture_input):
    source = opened(folder, [picture_input], mean=MEAN, std=STD, channel_order="BGR")
    expected = ((pixels(1)[..., ::-1].astype(np.float64) - MEAN) / STD).transpose(2, 0, 1)[None]
    np.testing.assert_allclose(source.batch(1)["x"], expected, rtol=1e-6)


def test_an_order_of_colors_for_gray_pictures_is_an_error(opened, folder):
    with pytest.raises(ArgumentError, match="BGR is for three channels, but the model takes 1"):
        opened(folder, [ModelInput("x", "float32", (1, 1, 4, 6))], channel_order="BGR")
