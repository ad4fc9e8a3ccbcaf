"""Telling the layers that this package inserts into nets, so that none of these nets is taken for a float net."""

from __future__ import annotations

import re

from twinquant_caffe.geometry import Typed
from twinquant_caffe.insert.names import BUILTIN_STEPS
from twinquant_caffe.insert.python_style import MODULE_NAME

__all__ = ["CALIBRATION_MODULE", "kind_of_own_net"]

CALIBRATION_MODULE = "twinquant_caffe.calibration_layer"
"""Name of the module of calibration layers, as modified nets say it."""

_BUILTIN_NAME = re.compile(rf".+_0_quant_layer(?:_\d+)?/(?:{'|'.join(BUILTIN_STEPS)})")
_FAKE_QUANT, _MODIFIED = "a fake-quant net", "the modified net of a calibration"


def kind_of_own_net(layer: Typed) -> str:
    """Return what a net is that has a layer: "a fake-quant net" or "the modified net of ..."; "" for any other."""
    if layer.type == "Python":
        module = layer.message.message("python_param").text("module")
        return {MODULE_NAME: _FAKE_QUANT, CALIBRATION_MODULE: _MODIFIED}.get(module, "")
    name = layer.message.text("name")
    return _FAKE_QUANT if layer.type in ("Power", "ReLU") and _BUILTIN_NAME.fullmatch(name) else ""
