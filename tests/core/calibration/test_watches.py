"""Where the layers of a model are watched."""

from __future__ import annotations

import numpy as np
import pytest

from twinquant.calibration.batches import errors_about
from twinquant.calibration.station import Station
from twinquant.calibration.watches import plan_watches
from twinquant.config import LayerConfig, QuantConfig
from twinquant.errors import CalibrationError
from twinquant.plan import LayerInfo, LayerKind


def watch_of(kind, weight_shape):
    layer = LayerInfo("body", "Any", kind, activation="x", weight_shape=weight_shape)
    config = QuantConfig(layers={"body": LayerConfig("body", dmq_migration_strength=0.5)})
    (watch,) = plan_watches([layer], config)
    return watch


@pytest.mark.parametrize(
    ("kind", "weight_shape", "axis"),
    [
        (LayerKind.CONV, (8, 3, 3), -2),
        (LayerKind.CONV, (8, 3, 3, 3), -3),
        (LayerKind.CONV, (8, 3, 3, 3, 3), -4),
        (LayerKind.CONV, None, 1),
        (LayerKind.CONV_TRANSPOSE, (3, 8, 2, 2), -3),
        (LayerKind.GEMM, (3, 8), -1),
        (LayerKind.MATMUL, (3, 8), -1),
    ],
)
def test_channels_lie_before_the_spatial_axes_counted_from_the_end(kind, weight_shape, axis):
    assert watch_of(kind, weight_shape).channel_axis == axis


def test_other_channels_than_the_weight_has_are_an_error_that_names_the_layer():
    station = Station(watch_of(LayerKind.CONV, (5, 3, 3, 3)))
    station.observe(np.ones((3, 8, 3, 8), np.float32))
    with (
        pytest.raises(CalibrationError, match="layer 'body': 8 channels of the activation do not match 3"),
        errors_about(station.watch.label),
    ):
        station.end_pass(lambda _: np.ones(3, np.float32))
