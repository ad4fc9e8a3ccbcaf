"""The AMCT spelling of the interface: the vendor's names and argument order.

A script that imports the vendor's package needs one changed line::

    from twinquant_onnx import amct
"""

from __future__ import annotations

import os

from twinquant.api import save_model as _save_model
from twinquant.errors import ArgumentError

__all__ = ["save_model"]


def save_model(
    modfied_onnx_file: str | os.PathLike[str] | None = None,
    record_file: str | os.PathLike[str] | None = None,
    save_path: str | os.PathLike[str] | None = None,
    *,
    modified_onnx_file: str | os.PathLike[str] | None = None,
) -> None:
    """Write the fake-quant and the deploy model of a calibrated ONNX model.

    Args:
        modfied_onnx_file: the model; the vendor's spelling.
        record_file: the record file that calibration filled.
        save_path: folder and prefix of the outputs, such as `./results/model`.
        modified_onnx_file: the same as `modfied_onnx_file`, spelled right.

    Raises:
        ArgumentError: an argument is missing, or the model is given twice.
        TwinQuantError: as `twinquant.save_model`.
    """
    if modfied_onnx_file is not None and modified_onnx_file is not None:
        raise ArgumentError(
            "the model is given twice, as modfied_onnx_file and as modified_onnx_file; give it once, in either spelling"
        )
    model = modfied_onnx_file if modfied_onnx_file is not None else modified_onnx_file
    given = {"modfied_onnx_file": model, "record_file": record_file, "save_path": save_path}
    missing = [name for name, value in given.items() if value is None]
    if model is None or record_file is None or save_path is None:
        raise ArgumentError(
            f"missing {', '.join(missing)}; call save_model(modfied_onnx_file, record_file, save_path), for example "
            "save_model('modified.onnx', 'record.txt', './results/model')"
        )
    _save_model(model, record_file, save_path, framework="onnx")
