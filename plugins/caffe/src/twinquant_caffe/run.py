"""Running a net in OpenCV and looking at any of its tensors."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.errors import UnsupportedModelError
from twinquant_caffe.insert.made import made_layer
from twinquant_caffe.net import BlobVersion, CaffeNet, Layer, make_net
from twinquant_caffe.opencv import import_opencv
from twinquant_caffe.opencv_layers import IN_CAFFE, for_opencv
from twinquant_caffe.prototxt.literal import is_literal
from twinquant_caffe.prototxt.tree import Field, Message, make
from twinquant_caffe.shapes import ShapeRule, infer_shapes
from twinquant_caffe.write import write_net

__all__ = ["RunNet", "open_net"]

Array = npt.NDArray[np.float32]

RunNet = Callable[[Mapping[str, Array]], dict[BlobVersion, Array]]
"""Runs a net on one batch, float32 arrays by input name, and returns the wanted tensors: float32, in any order."""

_TAP = "twinquant_tap_"
_READ_TEXTS = ("name", "type", "bottom", "top", "python_param")
"""Where OpenCV reads texts; what else it knows that holds some, such as a filler, is for training."""

_UNKNOWN_LAYER = re.compile(r"Can't create layer \"(?P<name>[^\"]*)\" of type \"(?P<type>[^\"]*)\"")


def open_net(
    net: CaffeNet,
    wanted: Collection[BlobVersion],
    *,
    threads: int | None = None,
    rules: Mapping[str, ShapeRule] | None = None,
) -> RunNet:
    """Read a net into OpenCV: the layers that the wanted tensors depend on, each on its own, nothing fused.

    The number of rows of the inputs, their first axis, may differ from batch to batch.

    Args:
        net: the net; its weights may be lazy.
        wanted: what is looked at.
        threads: threads of OpenCV; None: its own choice.
        rules: shapes of what layers of registered types write, by type; behind others shapes are not known.

    Raises:
        CapabilityError: OpenCV is missing, or a version that reads no Caffe nets.
        UnsupportedModelError: OpenCV cannot read the net. Running it raises this, too.
    """
    cv2 = import_opencv()
    written = {version for layer in net.layers if layer.type != "Input" for version in layer.writes}
    computed = [version for version in dict.fromkeys(wanted) if version in written]
    fed = [version for version in dict.fromkeys(wanted) if version not in written]
    if not computed:
        return lambda feeds: {version: feeds[version.blob] for version in fed}
    tapped = _tapped_net(net, computed, rules)
    with tempfile.TemporaryDirectory(prefix="twinquant-") as folder:
        prototxt, weights = write_net(tapped, Path(folder), "net.prototxt", "net.caffemodel")
        with _explained(cv2, net):
            opened = cv2.dnn.readNetFromCaffe(str(prototxt), str(weights))
    opened.enableFusion(False)
    opened.enableWinograd(False)
    names = [f"{_TAP}{number}" for number in range(len(computed))]
    inputs = tapped.head.texts("input")

    def run(feeds: Mapping[str, Array]) -> dict[BlobVersion, Array]:
        with _explained(cv2, net), _limited(cv2, threads):
            for name in inputs:
                opened.setInput(np.ascontiguousarray(feeds[name], np.float32), name)
            found = [np.asarray(array) for array in opened.forward(names)]
        values = dict(zip(computed, found, strict=True))
        expected = infer_shapes(net, {name: array.shape for name, array in feeds.items()}, rules)
        _check_shapes(net, values, expected)
        return {**values, **{version: feeds[version.blob] for version in fed}}

    return run


def _tapped_net(net: CaffeNet, wanted: Sequence[BlobVersion], rules: Mapping[str, ShapeRule] | None) -> CaffeNet:
    """Return what OpenCV is given: the needed layers, a blob name for every tensor, and a layer behind each wanted one.

    OpenCV calls results by the names of layers, of which several may write, in place, to one blob.
    """
    needed, missing = _needed(net.layers, wanted)
    shapes = dict(net.inputs)
    names = _name_tensors([*missing, *(version for layer in needed for version in layer.writes)])
    head: Message = make(name="tapped", input=tuple(version.blob for version in missing))
    if all(shapes.get(version.blob) for version in missing):
        head = head.replaced("input_shape", *(make(dim=shapes[version.blob]) for version in missing))
    known = infer_shapes(net, rules=rules)
    layers = [step for layer in needed for step in _translated(layer, names, known)]
    # OpenCV cuts a tensor into as many parts as are read: unread ones get a reader, which is never run.
    read = {version for layer in needed for version in layer.reads}
    unread = [version for layer in needed if len(layer.tops) > 1 for version in layer.writes if version not in read]
    taps = [
        made_layer(f"{_TAP}{number}", "Split", (names[version],), (f"{_TAP}{number}",))
        for number, version in enumerate([*wanted, *unread])
    ]
    return make_net(head, [*layers, *taps])


def _needed(layers: Sequence[Layer], wanted: Sequence[BlobVersion]) -> tuple[list[Layer], list[BlobVersion]]:
    """Return the layers that the wanted tensors depend on, in their order, and the inputs among these."""
    pending = dict.fromkeys(wanted)
    needed: list[Layer] = []
    made: set[BlobVersion] = set()
    for layer in reversed(layers):
        if layer.type != "Input" and pending.keys() & set(layer.writes):
            needed.append(layer)
            made.update(layer.writes)
            pending.update(dict.fromkeys(layer.reads))
    inputs = [version for version in pending if version not in made]
    return needed[::-1], sorted(inputs, key=lambda version: version.blob)


def _name_tensors(versions: Sequence[BlobVersion]) -> dict[BlobVersion, str]:
    """Give every tensor a blob name of its own: the first one of a blob keeps the blob's."""
    names = {version: version.blob for version in versions if not version.version}
    taken = set(names.values())
    for version in versions:
        name = names.get(version, str(version))
        while version not in names and name in taken:
            name += "'"
        names[version] = name
        taken.add(name)
    return names


def _translated(
    layer: Layer, names: Mapping[BlobVersion, str], shapes: Mapping[BlobVersion, tuple[int, ...]]
) -> Iterator[Layer]:
    bottoms = tuple(names[version] for version in layer.reads)
    tops = tuple(names[version] for version in layer.writes)
    message = layer.message.without("include", "exclude", "phase", "param")
    message = message.replaced("bottom", *bottoms).replaced("top", *tops)
    named = replace(layer, bottoms=bottoms, tops=tops, message=message, reads=(), writes=())
    for step in for_opencv(named, [shapes.get(version) for version in layer.reads]):
        # OpenCV 4.14 takes a parameter without axes, as Caffe writes a shared slope, for one without values.
        blobs = tuple(blob if blob.shape else replace(blob, shape=(1,)) for blob in step.blobs)
        yield replace(step, message=_without_texts(step.message, kept=_READ_TEXTS), blobs=blobs)


def _without_texts(message: Message, kept: Collection[str] = ()) -> Message:
    """Leave out all texts in quotes: OpenCV 4.14 refuses a whole net for one in a field that it does not know."""
    fields: list[Field] = []
    for item in message:
        if item.name in kept:
            fields.append(item)
        elif isinstance(item.value, Message):
            fields.append(replace(item, value=_without_texts(item.value)))
        elif not is_literal(item.value.text):
            fields.append(item)
    return message if tuple(fields) == message.fields else Message(tuple(fields), message.comments)


def _check_shapes(
    net: CaffeNet, values: Mapping[BlobVersion, Array], expected: Mapping[BlobVersion, tuple[int, ...]]
) -> None:
    """Refuse results of other shapes than Caffe's: OpenCV did not read a setting of a layer, or reads it otherwise."""
    for version, array in values.items():
        if version in expected and array.shape != expected[version]:
            writer = next(layer for layer in net.layers if version in layer.writes)
            raise UnsupportedModelError(
                f"OpenCV does not run {_name(net)} as Caffe does: what the {writer.type} layer {writer.name!r} writes "
                f"has the shape {list(array.shape)} in OpenCV, and {list(expected[version])} in Caffe; {IN_CAFFE}"
            )


def _name(net: CaffeNet) -> str:
    return net.files[0].name if net.files else "the net"


@contextmanager
def _limited(cv2: Any, threads: int | None) -> Iterator[None]:
    """Let OpenCV use so many threads; it has one number for the whole process."""
    if threads is None:
        yield
        return
    before = cv2.getNumThreads()
    cv2.setNumThreads(threads)
    try:
        yield
    finally:
        cv2.setNumThreads(before)


@contextmanager
def _explained(cv2: Any, net: CaffeNet) -> Iterator[None]:
    """Turn OpenCV's errors into ours."""
    try:
        yield
    except cv2.error as error:
        unknown = _UNKNOWN_LAYER.search(str(error))
        if unknown is None:
            problem = " ".join(str(error.err or error).split())
            raise UnsupportedModelError(f"OpenCV cannot run {_name(net)}: {problem}; {IN_CAFFE}") from error
        kind = unknown["type"]
        # Python layers are of one type for OpenCV, whatever their modules.
        what = "one class for all of them" if kind == "Python" else "a class for it"
        raise UnsupportedModelError(
            f"OpenCV cannot run {_name(net)}: it does not know the type {kind!r} of the layer {unknown['name']!r}. "
            f"Register {what} with cv2.dnn_registerLayer({kind!r}, ...), or {IN_CAFFE}"
        ) from error
