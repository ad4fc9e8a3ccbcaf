"""The calibration layer of modified nets as a Python layer, for pycaffe and for OpenCV.

The prototxt that `twinquant_caffe.amct.quantize_model` writes names this module. Caffe finds it where TwinQuant is
installed. With OpenCV, register the class once, before the net is run:

    cv2.dnn_registerLayer("Python", twinquant_caffe.calibration_layer.CalibrationLayer)
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from twinquant_caffe.modified.observation import TapObserver

if TYPE_CHECKING:
    _Base = object
else:
    try:
        from caffe import Layer as _Base  # pycaffe takes no other classes
    except ImportError:
        _Base = object

__all__ = ["CalibrationLayer"]

_logger = logging.getLogger(__name__)


class CalibrationLayer(_Base):
    """Passes its bottom on, and lets the calibration that `param_str` names observe it."""

    def __init__(self, *arguments: Any) -> None:
        """Take what the runtime gives: pycaffe one object of its own, OpenCV the parameters and the blobs."""
        if len(arguments) == 2:
            self._observer = TapObserver(arguments[0]["param_str"])
        else:
            super().__init__(*arguments)

    def getMemoryShapes(self, inputs: Sequence[Any]) -> Sequence[Any]:  # noqa: N802  the name that OpenCV calls
        """Tell OpenCV that the outputs have the shapes of the inputs."""
        return inputs

    def setup(self, bottom: Any, top: Any) -> None:
        """Read the settings, when pycaffe builds the layer."""
        del bottom, top
        self._observer = TapObserver(self.param_str)  # type: ignore[attr-defined]  # pycaffe's Layer has it

    def reshape(self, bottom: Any, top: Any) -> None:
        """Give the top the shape of the bottom, for pycaffe."""
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom: Any, top: Any = None) -> Any:
        """Pass on and observe: pycaffe gives the blob to fill, OpenCV takes a list of arrays back.

        In OpenCV a calibration that fails is told by the log and by `save_model`, in Caffe by an exception.
        """
        if top is None:
            self._observe_without_raising(bottom[0])
            return bottom
        top[0].data[...] = bottom[0].data
        self._observer.observe(np.array(bottom[0].data, np.float32))
        return None

    def _observe_without_raising(self, values: Any) -> None:
        try:
            self._observer.observe(np.array(values, np.float32))
        except BaseException as error:  # noqa: BLE001 - OpenCV 4.14 never returns from a layer that raised
            _logger.error("calibration failed: %s", error)

    def backward(self, top: Any, propagate_down: Any, bottom: Any) -> None:
        """Pass the gradient on."""
        if propagate_down[0]:
            bottom[0].diff[...] = top[0].diff
