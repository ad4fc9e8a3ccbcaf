"""Rules about the net as a whole: names, types, inputs, and who reads what."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from twinquant_caffe.check.declared import DeclaredLayer
from twinquant_caffe.data_layers import DATA_LAYERS
from twinquant_caffe.insert.heads import is_for_training
from twinquant_caffe.prototxt import Message

__all__ = ["check_inputs", "check_names", "check_types", "check_wiring"]

_NAME = re.compile(r"[A-Za-z0-9_\-./]+")

_DEVICE_NAMES = frozenset({"AscendQuant", "AscendDequant", "AscendAntiQuant"})
"""What the device calls its operators, which are no types of Caffe layers."""


def check_names(layers: Sequence[DeclaredLayer]) -> Iterator[str]:
    """Yield what is wrong with layers' names."""
    if not layers:
        yield "the net has no layers"
    for layer in layers:
        if not layer.name:
            yield f"{layer.label} has no name"
        elif not _NAME.fullmatch(layer.name):
            wrong = "".join(dict.fromkeys(letter for letter in layer.name if not _NAME.fullmatch(letter)))
            yield (
                f"layer name {layer.name!r}: the letters {wrong!r} are not allowed (E11018), only letters, digits and "
                "_ - . / are; rename the layer in the float net and in the record"
            )
    for name, count in Counter(layer.name for layer in layers if layer.name).items():
        if count > 1:
            yield f"{count} layers are called {name!r}; give each its own name"


def check_types(message: Message, layers: Sequence[DeclaredLayer]) -> Iterator[str]:
    """Yield layers that no device runs, or that are written in an old form."""
    if message.has("layers"):
        yield "there are `layers { }` of the old form; upgrade the net with Caffe's upgrade_net_proto_text"
    for layer in layers:
        if not layer.type:
            yield f"{layer.label} has no type"
        elif layer.type in _DEVICE_NAMES:
            yield f"{layer.label}: the type is the device's own name for it, which is refused here (E11009)"
        elif layer.type in DATA_LAYERS or is_for_training(layer):
            yield f"{layer.label}: data, loss and accuracy layers do not run on the device"


def check_inputs(message: Message, layers: Sequence[DeclaredLayer]) -> Iterator[str]:
    """Yield what is wrong with the inputs of the net."""
    heads = [layer for layer in layers if layer.type == "Input"]
    names = message.texts("input")
    dims, shapes = message.integers("input_dim"), message.messages("input_shape")
    if not heads and not names:
        yield "the net has no input: an Input layer is needed"
    if dims and shapes:
        yield "the net has input_dim and input_shape; only one of them may be there"
    if len(dims) != 4 * len(names) and dims:
        yield f"the net has {len(names)} inputs and {len(dims)} values of input_dim; each input takes 4"
    if shapes and len(shapes) != len(names):
        yield f"the net has {len(names)} inputs and {len(shapes)} values of input_shape"
    if names and not dims and not shapes:
        yield f"the input {names[0]!r} has no shape"
    lengths = {f"input_shape {place + 1}": shape.integers("dim") for place, shape in enumerate(shapes)}
    for layer in heads:
        given = layer.message.message("input_param").messages("shape")
        if len(given) not in (1, len(layer.tops)) or not layer.tops:
            yield (
                f"{layer.label} has {len(layer.tops)} tops and {len(given)} shapes; each top needs its shape. Where "
                "the float net has a data layer, replace it by an Input layer with a shape"
            )
        lengths |= {f"{layer.label}, shape {place + 1}": shape.integers("dim") for place, shape in enumerate(given)}
    if dims:
        lengths["input_dim"] = dims
    for where, numbers in lengths.items():
        if not numbers or any(number <= 0 for number in numbers):
            yield f"{where}: lengths must be above 0, got {list(numbers)}"


def check_wiring(message: Message, layers: Sequence[DeclaredLayer]) -> Iterator[str]:
    """Yield blobs that are read before they are written, or written twice."""
    writers = dict.fromkeys(message.texts("input"), "the head of the net")
    for layer in layers:
        for bottom in layer.bottoms:
            if bottom not in writers:
                yield f"{layer.label} reads the blob {bottom!r}, which no layer before it writes"
        for place, top in enumerate(layer.tops):
            in_place = layer.bottoms[place : place + 1] == (top,)
            if top in writers and not in_place:
                yield f"{layer.label} writes the blob {top!r}, which {writers[top]} writes already"
            writers[top] = layer.label
