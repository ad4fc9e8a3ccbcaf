"""The quantization of an activation as a Python layer, for pycaffe and for OpenCV; needs NumPy and nothing else.

This file lies beside the fake-quant net whose prototxt names it. With Caffe, let Python find it:

    PYTHONPATH=<its folder> python ...

With OpenCV, register its class once, before the net is run:

    cv2.dnn_registerLayer("Python", twinquant_fake_quant.QuantLayer)
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    _Base = object
else:
    try:
        from caffe import Layer as _Base
    except ImportError:
        _Base = object

__all__ = ["QuantLayer"]


class QuantLayer(_Base):
    """Computes `clip(rint(float32(x * scale)) + offset, -128, 127) - offset`; scale and offset are in param_str."""

    def __init__(self, *arguments: Any) -> None:
        """Take what the runtime gives: pycaffe one object of its own, OpenCV the parameters and the blobs."""
        if len(arguments) == 2:
            self._configure(arguments[0]["param_str"])
        else:
            super().__init__(*arguments)

    def _configure(self, settings: str) -> None:
        values = json.loads(settings)
        self._scale = np.float32(values["scale"])
        self._offset = np.float32(values["offset"])

    def _quantize(self, x: Any) -> Any:
        # The package twinquant rounds the same way; this file has to run where that is not installed.
        y = np.multiply(x, self._scale, dtype=np.float32)
        np.rint(y, out=y)
        np.add(y, self._offset, out=y)
        np.clip(y, np.float32(-128), np.float32(127), out=y)
        np.subtract(y, self._offset, out=y)
        return y

    def getMemoryShapes(self, inputs: Sequence[Any]) -> Sequence[Any]:  # noqa: N802  the name that OpenCV calls
        """Tell OpenCV that the outputs have the shapes of the inputs."""
        return inputs

    def setup(self, bottom: Any, top: Any) -> None:
        """Read the settings, when pycaffe builds the layer."""
        del bottom, top
        self._configure(self.param_str)  # type: ignore[attr-defined]  # pycaffe's Layer has it

    def reshape(self, bottom: Any, top: Any) -> None:
        """Give the top the shape of the bottom, for pycaffe."""
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom: Any, top: Any = None) -> Any:
        """Quantize: pycaffe gives the blob to fill, OpenCV takes a list of arrays back."""
        if top is None:
            return [self._quantize(x) for x in bottom]
        top[0].data[...] = self._quantize(bottom[0].data)
        return None

    def backward(self, top: Any, propagate_down: Any, bottom: Any) -> None:
        """Refuse to train through rounding."""
        raise NotImplementedError("a quantization has no gradient: this net is for inference")
