"""What counts as one batch, and what is said about one that does not fit."""

from __future__ import annotations

import re

import numpy as np
import pytest

from twinquant.data.feeds import make_feeds
from twinquant.errors import DataError
from twinquant.registry import ModelInput

X = ModelInput("x", "float32", ("N", 3))
IDS = ModelInput("ids", "int64", (2, None))


class Tensor:
    """As a torch tensor that needs a gradient: `numpy()` works after `detach()` and `cpu()` only."""

    def __init__(self, array, state="attached"):
        self.array, self.state = array, state

    def detach(self):
        return Tensor(self.array, "detached")

    def cpu(self):
        return Tensor(self.array, "on the host" if self.state == "detached" else self.state)

    def numpy(self):
        assert self.state == "on the host"
        return self.array


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


@pytest.mark.parametrize(
    "item",
    [
        ones(5, 3),
        {"x": ones(5, 3)},
        (ones(5, 3), np.arange(5)),
        [ones(5, 3)],
        Tensor(ones(5, 3)),
        (Tensor(ones(5, 3)), Tensor(np.arange(5))),
        [[1.0, 1.0, 1.0]] * 5,
        [[1, 1, 1]] * 5,
    ],
    ids=["array", "dict", "with labels", "list of one", "tensor", "tensor with labels", "numbers", "whole numbers"],
)
def test_a_batch_of_one_input_may_be_given_in_many_forms(item):
    feeds = make_feeds(item, [X], "data, batch 1")
    assert list(feeds) == ["x"]
    assert feeds["x"].dtype == np.float32
    np.testing.assert_array_equal(feeds["x"], ones(5, 3))


def test_a_tuple_goes_to_the_inputs_in_their_order():
    feeds = make_feeds((ones(5, 3), ones(2, 7, dtype=np.int64), "label"), [X, IDS], "batch")
    assert {name: array.shape for name, array in feeds.items()} == {"x": (5, 3), "ids": (2, 7)}


def test_the_order_of_the_bytes_does_not_matter():
    values = np.arange(6, dtype=np.float32).reshape(2, 3)
    given = make_feeds(values.astype(">f4"), [X], "batch")["x"]
    np.testing.assert_array_equal(given.view(np.uint32), values.view(np.uint32))


def test_a_missing_first_axis_is_added():
    assert make_feeds(ones(3), [X], "batch")["x"].shape == (1, 3)


def test_a_missing_first_axis_is_not_added_where_the_model_wants_more_than_one():
    with pytest.raises(DataError, match=re.escape("input 'ids': the data have shape [7], the model takes [2, ?]")):
        make_feeds({"ids": ones(7, dtype=np.int64)}, [IDS], "batch")


def test_an_input_of_unknown_rank_takes_any_shape():
    anything = ModelInput("x", "float32", None)
    assert make_feeds(ones(2, 3, 4), [anything], "batch")["x"].shape == (2, 3, 4)


@pytest.mark.parametrize(
    ("item", "message"),
    [
        ({"X": ones(5, 3)}, "data, batch 4: the model has no input 'X'; did you mean 'x'? It has 'x'"),
        ({"xx": ones(5, 3)}, "data, batch 4: the model has no input 'xx'; did you mean 'x'? It has 'x'"),
        ({"image": ones(5, 3)}, "data, batch 4: the model has no input 'image'; it has 'x'"),
        ({}, "data, batch 4: no array for the input 'x'; there are none"),
        (ones(5, 4), "data, batch 4, input 'x': the data have shape [5, 4], the model takes [N, 3]"),
        (ones(5, 3, 1), "data, batch 4, input 'x': the data have shape [5, 3, 1], the model takes [N, 3]"),
        (
            ones(5, 3, dtype=np.float64),
            "data, batch 4, input 'x': the data are float64, the model takes float32; convert them with "
            ".astype('float32')",
        ),
        (ones(0, 3), "data, batch 4, input 'x': the data have shape [0, 3]: no value at all"),
        (
            np.array([None, 1.0], object),
            "data, batch 4, input 'x': the data are Python objects (such as NoneType), the model takes float32; give "
            "arrays of numbers",
        ),
        (
            ones(5, 3, dtype=np.complex64),
            "data, batch 4, input 'x': the data are complex64, the model takes float32; give real numbers, such as "
            "their .real or their magnitude",
        ),
        (
            np.array(["2024-01-01"], "datetime64[D]"),
            "data, batch 4, input 'x': the data are datetime64[D], the model takes float32; give numbers",
        ),
        (
            np.array(["1.5"]),
            "data, batch 4, input 'x': the data are str96, the model takes float32; give numbers",
        ),
        (None, "data, batch 4, input 'x': the data are Python objects (such as NoneType), the model takes float32"),
        ("a word", "data, batch 4, input 'x': cannot become an array: 'a word' is text; give arrays"),
        ([[1.0], [1.0, 2.0]], "data, batch 4, input 'x': cannot become an array"),
    ],
    ids=[
        *("letters", "name", "no name", "absent", "shape", "rank", "type", "empty", "objects", "complex", "dates"),
        *("texts", "none", "text", "ragged"),
    ],
)
def test_a_batch_that_does_not_fit_is_an_error_that_names_the_input_and_both_sides(item, message):
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        make_feeds(item, [X], "data, batch 4")


@pytest.mark.parametrize("item", [ones(5, 3), (ones(5, 3),)], ids=["array", "tuple"])
def test_too_few_arrays_for_the_inputs_are_an_error_that_names_the_inputs(item):
    with pytest.raises(DataError, match=r"the model has 2 inputs, 'x', 'ids'; give a dict of arrays by input name"):
        make_feeds(item, [X, IDS], "batch")


class BFloat16Tensor:
    """As a torch tensor of a type that NumPy lacks."""

    def detach(self):
        return self

    def cpu(self):
        return self

    def numpy(self):
        raise TypeError("Got unsupported ScalarType BFloat16")


def test_a_tensor_of_a_type_that_numpy_lacks_is_an_error_that_says_what_to_do():
    with pytest.raises(DataError, match=r"ScalarType BFloat16; convert it with \.float\(\)"):
        make_feeds(BFloat16Tensor(), [X], "batch")


PAST = ModelInput("past", "float32", ("N", "words", 6))


def test_an_input_may_be_empty_where_another_one_has_values():
    feeds = make_feeds({"x": ones(2, 3), "past": ones(2, 0, 6)}, [X, PAST], "batch")
    assert feeds["past"].shape == (2, 0, 6)


@pytest.mark.parametrize(
    ("item", "name"),
    [
        ({"x": ones(0, 3), "past": ones(0, 4, 6)}, "x"),
        ({"x": ones(2, 3), "past": ones(0, 4, 6)}, "past"),
        ({"x": ones(0, 3), "past": ones(2, 0, 6)}, "x"),
    ],
    ids=["no sample", "no sample of one input", "no value"],
)
def test_a_batch_without_a_sample_is_an_error_that_names_the_input(item, name):
    with pytest.raises(DataError, match=rf"input '{name}': the data have shape \[0, .*: no value at all"):
        make_feeds(item, [X, PAST], "batch")


def test_a_batch_without_any_value_is_an_error():
    with pytest.raises(DataError, match=r"input 'past': the data have shape \[2, 0, 6\]: no value at all"):
        make_feeds(ones(2, 0, 6), [PAST], "batch")
