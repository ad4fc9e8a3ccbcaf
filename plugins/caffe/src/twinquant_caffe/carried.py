"""The encoded fields that a layer of a caffemodel carries along, without those that its prototxt may contradict."""

from __future__ import annotations

from twinquant.wire import LENGTH_DELIMITED, WireError, fields, header
from twinquant_caffe.schema import BIAS_TERM, CONVOLUTION_PARAM, INNER_PRODUCT_PARAM, LAYER_PARAM

__all__ = ["without_bias_term", "without_param"]

_FILTER_PARAMETERS = frozenset({CONVOLUTION_PARAM, INNER_PRODUCT_PARAM})


def without_param(rest: bytes) -> bytes:
    """Return the fields of a layer that shares its parameters with nobody any more."""
    return _without(rest, LAYER_PARAM)


def without_bias_term(rest: bytes) -> bytes:
    """Return the fields of a layer that has a bias now, whatever they said; absent, bias_term is true."""
    kept = bytearray()
    for number, wire_type, tag, body, stop in fields(rest, 0, len(rest)):
        if number in _FILTER_PARAMETERS and wire_type == LENGTH_DELIMITED:
            try:
                parameter = _without(rest[body:stop], BIAS_TERM)
            except WireError:  # not what the field's number says: nobody can read it as such
                continue
            kept += header(number, len(parameter)) + parameter
        else:
            kept += rest[tag:stop]
    return bytes(kept)


def _without(encoded: bytes, unwanted: int) -> bytes:
    return b"".join(
        encoded[tag:stop] for number, _, tag, _, stop in fields(encoded, 0, len(encoded)) if number != unwanted
    )
