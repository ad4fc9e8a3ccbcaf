"""The acceptance checker: the rules of the device compiler's Caffe parser, applied to a written deploy net."""

from __future__ import annotations

from pathlib import Path

from twinquant_caffe.check.blobs import check_encodings, check_stored_layers
from twinquant_caffe.check.declared import declared_layers, guarded
from twinquant_caffe.check.quantized import check_kind, check_quantized
from twinquant_caffe.check.structure import check_inputs, check_names, check_types, check_wiring
from twinquant_caffe.written import read_written

__all__ = ["check_deploy"]


def check_deploy(prototxt: Path, caffemodel: Path | None = None, *, quantized: bool = True) -> list[str]:
    """Return what the device compiler would refuse about a deploy net, a sentence each; nothing: it is accepted.

    Args:
        prototxt: the prototxt.
        caffemodel: the caffemodel; None: the one that belongs to the prototxt by its name.
        quantized: something in it has to be quantized; False: it may be a float net whose plan was empty.

    Raises:
        ModelFileError: a file is missing, cannot be read or is damaged.
    """
    twin = read_written(prototxt, caffemodel)
    layers = declared_layers(twin.message)
    rules = [
        *([check_kind(layers)] if quantized else []),
        check_names(layers),
        check_types(twin.message, layers),
        check_inputs(twin.message, layers),
        check_wiring(twin.message, layers),
        check_stored_layers(twin, layers),
        *(check_encodings(layer, twin.blobs(layer.name)) for layer in layers),
        check_quantized(twin, layers),
    ]
    # Two rules may stumble over the same field.
    return list(dict.fromkeys(problem for rule in rules for problem in guarded(rule)))
