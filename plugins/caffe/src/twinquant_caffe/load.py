"""Loading a net: its prototxt and its caffemodel become one `CaffeNet` in its TEST phase."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from twinquant.errors import ModelFileError, UnsupportedModelError
from twinquant_caffe.caffemodel import Caffemodel, StoredLayer, read_caffemodel
from twinquant_caffe.net import Blob, CaffeNet, Layer, make_net
from twinquant_caffe.own_layers import kind_of_own_net
from twinquant_caffe.parameters import check_parameters
from twinquant_caffe.phase import in_test_phase
from twinquant_caffe.prototxt import Field, Message, parse_prototxt
from twinquant_caffe.sources import find_pair
from twinquant_caffe.windows import check_windows

__all__ = ["load_net"]

_QUANTIZED_TYPES = frozenset({"Quant", "DeQuant", "AntiQuant", "AscendQuant", "AscendDequant", "AscendAntiQuant"})
_UPGRADE = (
    "upgrade it with Caffe's tool: `upgrade_net_proto_text old.prototxt new.prototxt`. A caffemodel of that kind is "
    "read as it is"
)
_MOST_NAMES = 10

_logger = logging.getLogger(__name__)


def load_net(source: Any, *, float_only: bool = True) -> CaffeNet:
    """Load a net; its weights stay in the caffemodel, which must not change while the net is used.

    Args:
        source: a pair of paths, prototxt and caffemodel; a text with both and a comma between; or one of the two, whose
            partner has the same stem.
        float_only: refuse the fake-quant nets and the modified nets that this package writes; False: they are read as
            the nets of floats that they are, to be run.

    Returns:
        The net in its TEST phase, with everything in it, known or not.

    Raises:
        ArgumentError: the source is none of these.
        ModelFileError: a file is missing or damaged, a layer lacks its weights, or files or layers disagree.
        UnsupportedModelError: the net is quantized already, of an older format, or its weights are no floats.
    """
    prototxt, caffemodel = find_pair(source)
    tree = parse_prototxt(prototxt)
    try:
        head, layers = _split(tree, prototxt)
        layers = [layer for layer in layers if in_test_phase(layer.message, head)]
        _refuse_quantized(layers, prototxt)
        if float_only:
            _refuse_own(layers, prototxt)
        # What is wrong with the prototxt alone is said before the caffemodel is opened.
        check_windows(make_net(head, layers))
        stored = read_caffemodel(caffemodel)
        layers = _with_blobs(layers, stored)
        _refuse_ambiguous(layers)
        check_parameters(layers, caffemodel)
        net = make_net(head, layers)
    except ModelFileError as error:
        if any(str(path) in str(error) for path in (prototxt, caffemodel)):
            raise
        raise ModelFileError(f"net {str(prototxt)!r}: {error}") from error
    return replace(net, rest=stored.rest, files=(prototxt, caffemodel))


def _split(tree: Message, prototxt: Path) -> tuple[Message, list[Layer]]:
    """Return the fields that are no layers, and the layers."""
    if tree.has("layers"):
        raise UnsupportedModelError(f"prototxt {str(prototxt)!r} has layers of an old kind, `layers {{ }}`; {_UPGRADE}")
    layers = [_layer(item) for item in tree if item.name == "layer"]
    if not layers:
        raise ModelFileError(
            f"prototxt {str(prototxt)!r} holds no layer; give the net's own (often deploy.prototxt), not a solver"
        )
    return Message(tuple(item for item in tree if item.name != "layer"), tree.comments), layers


def _layer(item: Field) -> Layer:
    if not isinstance(item.value, Message):
        raise ModelFileError(f"line {item.line} of the prototxt: 'layer' has to be a block in braces")
    message = item.value
    name, kind = message.text("name"), message.text("type")
    if not kind:
        raise ModelFileError(f"line {item.line} of the prototxt: layer {name!r} has no type")
    comments = (*item.comments, *filter(None, [item.trailing]))
    return Layer(name, kind, message.texts("bottom"), message.texts("top"), message, comments=comments)


def _refuse_quantized(layers: Sequence[Layer], prototxt: Path) -> None:
    for layer in layers:
        if layer.type in _QUANTIZED_TYPES:
            raise UnsupportedModelError(
                f"prototxt {str(prototxt)!r} is quantized already: layer {layer.name!r} has the type {layer.type}; "
                "give the float net it was made from"
            )


def _refuse_own(layers: Sequence[Layer], prototxt: Path) -> None:
    for layer in layers:
        if kind := kind_of_own_net(layer):
            raise UnsupportedModelError(
                f"prototxt {str(prototxt)!r} is {kind}, as the layer {layer.name!r} tells; give the float net it was "
                "made from"
            )


def _with_blobs(layers: Sequence[Layer], stored: Caffemodel) -> list[Layer]:
    """Give each layer what the caffemodel has under its name, and shared parameters to those who share them."""
    by_name: dict[str, StoredLayer] = {}
    for entry in stored.layers:
        # Caffe copies entries one after the other: the last one with parameters is what stays.
        if entry.blobs or entry.name not in by_name:
            by_name[entry.name] = entry
    _log_extra([entry.name for entry in stored.layers], {layer.name for layer in layers})
    found = []
    for layer in layers:
        own = by_name.get(layer.name)
        found.append(replace(layer, blobs=own.blobs, rest=own.rest) if own else layer)
    return _shared(found, list(by_name))


def _log_extra(stored: Sequence[str], known: set[str]) -> None:
    extra = [name for name in dict.fromkeys(stored) if name not in known]
    if extra:
        names = ", ".join(extra[:_MOST_NAMES]) + (", ..." if len(extra) > _MOST_NAMES else "")
        _logger.info("%d layers of the caffemodel are not in the prototxt's TEST phase: %s", len(extra), names)


def _shared(layers: Sequence[Layer], order: Sequence[str]) -> list[Layer]:
    """Give all users of a shared parameter the same values.

    Caffe copies the caffemodel's layers one after the other into the same memory: the last user's values are those of
    all. A user that the caffemodel has no parameters for takes the shape too.
    """
    place = {name: index for index, name in enumerate(order)}
    owners: dict[str, tuple[Layer, Blob]] = {}
    for layer in sorted(layers, key=lambda layer: place.get(layer.name, -1)):
        for name, blob in zip(_parameter_names(layer), layer.blobs, strict=False):
            if name:
                owners[name] = layer, blob
    return [
        replace(layer, blobs=_blobs_of_user(layer, owners)) if any(_parameter_names(layer)) else layer
        for layer in layers
    ]


def _parameter_names(layer: Layer) -> tuple[str, ...]:
    """Return the names under which a layer's parameters are shared, "" for those that are not."""
    return tuple(param.text("name") for param in layer.message.messages("param"))


def _blobs_of_user(layer: Layer, owners: dict[str, tuple[Layer, Blob]]) -> tuple[Blob, ...]:
    blobs = list(layer.blobs)
    for index, name in enumerate(_parameter_names(layer)):
        if name not in owners or index > len(blobs):
            continue
        owner, blob = owners[name]
        if index == len(blobs):
            blobs.append(blob)
        elif blobs[index].size != blob.size:
            raise ModelFileError(
                f"layers {owner.name!r} and {layer.name!r} share the parameter {name!r}, but its shapes are "
                f"{list(blob.shape)} and {list(blobs[index].shape)}"
            )
        elif blobs[index] is not blob:
            blobs[index] = replace(blobs[index], values=blob.values)
    return tuple(blobs)


def _refuse_ambiguous(layers: Sequence[Layer]) -> None:
    """Refuse two layers of one name where the name has to tell whose weights or records are meant."""
    seen: dict[str, Layer] = {}
    for layer in layers:
        other = seen.setdefault(layer.name, layer)
        if other is not layer and (layer.blobs or other.blobs or "Pooling" in (layer.type, other.type)):
            raise ModelFileError(
                f"two layers have the name {layer.name!r} ({other.type} and {layer.type}); names tell which weights "
                "and records are a layer's, so give each its own, in the prototxt and in the caffemodel"
            )
