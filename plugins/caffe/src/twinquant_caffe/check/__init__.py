"""The acceptance checker: the rules of the device compiler's Caffe parser, applied to a written deploy net."""

from __future__ import annotations

from pathlib import Path

from twinquant_caffe.check.blobs import check_encodings, check_stored_layers
from twinquant_caffe.check.declared import declared_layers
from twinquant_caffe.check.quantized import check_quantized
from twinquant_caffe.check.structure import check_inputs, check_names, check_types, check_wiring
from twinquant_caffe.written import read_written

__all__ = ["check_deploy"]


def check_deploy(prototxt: Path, caffemodel: Path | None = None) -> list[str]:
    """Return what the device compiler would refuse about a deploy net, a sentence each; nothing: it is accepted.

    Args:
        prototxt: the prototxt.
        caffemodel: the caffemodel; None: the one that belongs to the prototxt by its name.

    Raises:
        ModelFileError: a file is missing, cannot be read or is damaged.
    """
    twin = read_written(prototxt, caffemodel)
    layers = declared_layers(twin.message)
    problems = [
        *check_names(layers),
        *check_types(twin.message, layers),
        *check_inputs(twin.message, layers),
        *check_wiring(twin.message, layers),
        *check_stored_layers(twin, layers),
    ]
    for layer in layers:
        problems += check_encodings(layer, twin.blobs(layer.name))
    return [*problems, *check_quantized(twin, layers)]
