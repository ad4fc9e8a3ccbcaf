"""Inputs of models that do not exist: the data package knows no more of a model."""

from __future__ import annotations

import pytest

from twinquant.data import DataOptions, open_data
from twinquant.registry import ModelInput


@pytest.fixture
def picture_input():
    return ModelInput("x", "float32", ("N", 3, 4, 6))


@pytest.fixture
def opened():
    """Open data for inputs; every source is closed at the end of the test."""
    sources = []

    def open_it(data, inputs, *, batch_num=4, repeated=True, **options):
        sources.append(open_data(data, inputs, DataOptions(**options), batch_num=batch_num, repeated=repeated))
        return sources[-1]

    yield open_it
    for source in sources:
        source.close()


@pytest.fixture
def vector():
    """One input of three numbers, any batch length."""
    return [ModelInput("x", "float32", (None, 3))]
