"""The styles of the fake-quant twin."""

from __future__ import annotations

from collections.abc import Mapping

from twinquant_caffe.insert.amct_style import AMCT
from twinquant_caffe.insert.builtin import BUILTIN
from twinquant_caffe.insert.python_style import PYTHON
from twinquant_caffe.insert.recipes import Recipe

__all__ = ["STYLES"]

STYLES: Mapping[str, Recipe] = {"builtin": BUILTIN, "python": PYTHON, "amct": AMCT}
"""By the name that `fake_quant_style` takes."""
