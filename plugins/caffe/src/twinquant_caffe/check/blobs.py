"""Rules about the parameters in the caffemodel: types, shapes and numbers of values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from math import prod

from twinquant_caffe.check.declared import DeclaredLayer
from twinquant_caffe.parameters import needs_parameters
from twinquant_caffe.schema import DATA, DOUBLE_DATA, INT8_DATA, INT32_DATA, UINT64_DATA
from twinquant_caffe.written import FIELD_NAMES, WrittenBlob, WrittenTwin

__all__ = ["check_encodings", "check_stored_layers"]

_INTEGERS = (INT8_DATA, INT32_DATA, UINT64_DATA)
_FLOATS = (DATA, DOUBLE_DATA)


def check_stored_layers(twin: WrittenTwin, layers: Sequence[DeclaredLayer]) -> Iterator[str]:
    """Yield layers of the caffemodel that do not fit those of the prototxt."""
    if twin.old_layers:
        yield "the caffemodel has layers of the old form; upgrade it with Caffe's upgrade_net_proto_binary"
    types = {layer.name: layer.type for layer in layers}
    for name, count in Counter(stored.name for stored in twin.stored).items():
        if count > 1:
            yield f"{count} layers of the caffemodel are called {name!r}"
    for stored in twin.stored:
        if stored.name not in types and stored.blobs:
            yield f"the caffemodel has parameters of a layer {stored.name!r}, which the prototxt lacks"
        elif stored.type and stored.name in types and stored.type != types[stored.name]:
            yield f"layer {stored.name!r} is a {types[stored.name]} in the prototxt, a {stored.type} in the caffemodel"
    for layer in layers:
        if needs_parameters(layer.type, len(layer.bottoms)) and not twin.blobs(layer.name) and not _shares(layer):
            yield f"{layer.label} has no parameters in the caffemodel"


def _shares(layer: DeclaredLayer) -> bool:
    """Tell whether a layer may have the parameters of another one."""
    return any(parameter.has("name") for parameter in layer.message.messages("param"))


def check_encodings(layer: DeclaredLayer, blobs: Sequence[WrittenBlob]) -> Iterator[str]:
    """Yield parameters of one layer that are stored in a wrong way."""
    for index, blob in enumerate(blobs):
        where = f"{layer.label}, blobs[{index}]"
        present = [field for field in FIELD_NAMES if field in blob.runs]
        if len(present) > 1:
            named = " and ".join(FIELD_NAMES[field] for field in present)
            yield f"{where} holds {named}; one kind of values is allowed"
        if blob.shape is not None and blob.legacy:
            yield f"{where} has a shape and num, channels, height, width; only the shape may be there"
        if any(field in _INTEGERS for field in present) and blob.shape is None:
            yield f"{where} holds integers without a shape"
        if any(length <= 0 for length in blob.lengths):
            yield f"{where}: lengths must be above 0, got {list(blob.lengths)}"
            continue
        for field in present:
            count = blob.count(field)
            if count != prod(blob.lengths):
                yield f"{where}: the shape {list(blob.lengths)} takes {prod(blob.lengths)} values, there are {count}"
        if not present:
            yield f"{where} holds no values"
    kinds: Mapping[bool, list[int]] = {
        integers: [field for blob in blobs for field in blob.runs if field in group]
        for integers, group in ((True, _INTEGERS), (False, _FLOATS))
    }
    if kinds[True] and kinds[False]:
        yield f"{layer.label} holds {FIELD_NAMES[kinds[False][0]]} beside {FIELD_NAMES[kinds[True][0]]}"
