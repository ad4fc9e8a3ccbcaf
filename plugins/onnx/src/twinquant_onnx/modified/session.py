"""The session options with which ONNX Runtime runs a modified model: our operators, as Python functions."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from twinquant.errors import CapabilityError
from twinquant_onnx.modified.finish import receive_batch
from twinquant_onnx.modified.job import CalibrationJob
from twinquant_onnx.modified.observation import DOMAIN, FINISH, INPUT_OPERATORS
from twinquant_onnx.modified.progress import RecordWatch

__all__ = ["make_session_options"]

Array = npt.NDArray[Any]
Int64Array = npt.NDArray[np.int64]

_logger = logging.getLogger(__name__)

_EXTENSION_NAMES = {"float32": "float", "float64": "double"}
"""What onnxruntime-extensions calls element types, where that differs from NumPy."""

_NO_BATCH = np.array([-1], np.int64)
_NO_SHAPE = np.array([-2], np.int64)
"""What operators return that failed; no tensor can be given such a shape."""


def make_session_options() -> ort.SessionOptions:
    """Return options that know the operators of modified models; any other model runs with them as with the defaults.

    Raises:
        CapabilityError: the package that makes Python functions operators is missing.
    """
    options = ort.SessionOptions()
    options.register_custom_ops_library(_register_operators())
    return options


@cache
def _register_operators() -> str:
    """Register the operators, which a process can do once only; return the path of the library that runs them."""
    try:
        from onnxruntime_extensions import PyCustomOpDef, get_library_path, onnx_op
    except ImportError as error:
        raise CapabilityError(
            "AMCT_SO needs the package onnxruntime-extensions; run: pip install onnxruntime-extensions. "
            "twinquant.calibrate and twinquant.quantize work without it"
        ) from error
    batches = _Batches()
    for element_type, operator in INPUT_OPERATORS.items():
        code = getattr(PyCustomOpDef, f"dt_{_EXTENSION_NAMES.get(element_type, element_type)}")
        onnx_op(
            op_type=f"{DOMAIN}::{operator}",
            inputs=[PyCustomOpDef.dt_int64, code],
            outputs=[PyCustomOpDef.dt_int64],
        )(_guarded(batches.add_input, _NO_BATCH))
    onnx_op(
        op_type=f"{DOMAIN}::{FINISH}",
        inputs=[PyCustomOpDef.dt_int64],
        outputs=[PyCustomOpDef.dt_int64],
        attrs={"job": PyCustomOpDef.dt_string},
    )(_guarded(batches.finish, _NO_SHAPE))
    path: str = get_library_path()
    return path


class _Batches:
    """The batches that are on their way through a session: inputs that were seen, by the number of the batch."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._open: dict[int, list[Array]] = {}
        self._lock = threading.Lock()
        self._records = RecordWatch()

    def add_input(self, token: Int64Array, values: Array) -> Int64Array:
        """Take the next input of a batch; token 0 begins one. Returns the batch's number."""
        number = int(token[0]) or next(self._numbers)
        self._open.setdefault(number, []).append(values)
        return np.array([number], np.int64)

    def finish(self, token: Int64Array, job: str) -> Int64Array:
        """Hand a complete batch on. Returns the shape of its first input."""
        arrays = self._open.pop(int(token[0]))
        with self._lock:
            receive_batch(CalibrationJob.from_text(job), arrays, self._records)
        return np.array(arrays[0].shape, np.int64)


def _guarded(function: Callable[..., Int64Array], failed: Int64Array) -> Callable[..., Int64Array]:
    """Return a function that returns `failed` where the given one raises: an exception would end the process."""

    def call(*arguments: Array, **attributes: str) -> Int64Array:
        try:
            return function(*arguments, **attributes)
        except KeyboardInterrupt:
            _logger.error("calibration was interrupted; the next batch goes on with the stored ones")
        except BaseException as error:  # noqa: BLE001 - the boundary to native code: nothing may pass
            _logger.error("calibration failed: %s", error)
        return failed

    return call
