"""The shipped example: a network trained on real handwritten digits, with a record of its layers.

`examples/digits` of the repository holds the scripts that made the files.
"""

from __future__ import annotations

from twinquant_onnx.demo.accuracy import run_demo

__all__ = ["run_demo"]
