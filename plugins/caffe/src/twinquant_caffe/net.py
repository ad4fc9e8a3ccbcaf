"""A Caffe net in memory: layers in their order, blobs by version, weights that stay in their files."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from twinquant.errors import ModelFileError, UnsupportedModelError
from twinquant_caffe.prototxt.tree import Message
from twinquant_caffe.values import Stored, Values

__all__ = ["Blob", "BlobVersion", "CaffeNet", "Layer", "make_net"]


@dataclass(frozen=True, slots=True)
class BlobVersion:
    """One tensor of a net: in-place layers write new tensors under an old blob name.

    Attributes:
        blob: the blob's name.
        version: 0 for the first writer, one more for each later one.
    """

    blob: str
    version: int

    def __str__(self) -> str:
        return f"{self.blob}:{self.version}" if self.version else self.blob


@dataclass(frozen=True, slots=True, eq=False)
class Blob:
    """One parameter of a layer.

    Attributes:
        shape: its lengths as stored: `shape { dim }`, or the four of a legacy blob.
        values: its values, which stay where they are until they are asked for; `floats` gives them typed.
        legacy: the lengths were num, channels, height and width.
        rest: the encoded fields that are none of ours (diff excluded), to be carried through.
    """

    shape: tuple[int, ...]
    values: Stored
    legacy: bool = False
    rest: bytes = b""

    @property
    def floats(self) -> Values:
        """The values as floats, which those of every loaded net are.

        Raises:
            UnsupportedModelError: they are integers, as in a deploy net.
        """
        if not isinstance(self.values, Values):
            raise UnsupportedModelError("this blob holds integers; float weights are needed here")
        return self.values

    @property
    def size(self) -> int:
        """How many values the shape asks for."""
        return math.prod(self.shape)

    def meaning_shape(self, axes: int) -> tuple[int, ...]:
        """Return the lengths without the leading ones that legacy files put before a bias or a matrix.

        `[1, 1, 1, N]` is a bias `(N,)` with one axis; `[1, 1, a, b]` is a matrix `(a, b)` with two.

        Args:
            axes: how many lengths the parameter has. A shape that cannot have so many is returned as it is.
        """
        extra = len(self.shape) - axes
        return self.shape[extra:] if extra > 0 and set(self.shape[:extra]) == {1} else self.shape


@dataclass(frozen=True, slots=True, eq=False)
class Layer:
    """One layer, of any type.

    Attributes:
        name: its name.
        type: its type, such as "Convolution".
        bottoms: names of the blobs it reads.
        tops: names of the blobs it writes.
        message: the whole `layer { }` of the prototxt; `name`, `type`, `bottom` and `top` in it are those above.
        blobs: its parameters, from the caffemodel.
        reads: versions of its bottoms; the net sets them.
        writes: versions of its tops; the net sets them.
        rest: the encoded fields of its caffemodel message but name, type, bottom, top and blobs, to be carried through.
        comments: the comment lines before it in the prototxt.
    """

    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    message: Message
    blobs: tuple[Blob, ...] = ()
    reads: tuple[BlobVersion, ...] = ()
    writes: tuple[BlobVersion, ...] = ()
    rest: bytes = b""
    comments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class CaffeNet:
    """A net in its TEST phase; `make_net` makes it.

    Attributes:
        head: the fields of the prototxt that are no layers: name, input, input_shape, unknown ones. `input_dim` and
            `input_shape` heads stay as they were written.
        layers: the layers of the TEST phase, in their order; `Input` layers are among them.
        inputs: what has to be fed: blob names and their shapes (`input` heads and `Input` layers), in order. A shape is
            `()` where the net does not tell it.
        outputs: the blob versions that no layer reads, in order; not what is fed.
        rest: the encoded fields of the caffemodel that are no layers, to be carried through.
        files: the files the net was read from.
        fused: for a layer, what was folded into it and itself: the names of the original layers in their order.
        prepared: records are about this net as it is: nothing more is folded.
    """

    head: Message
    layers: tuple[Layer, ...]
    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    outputs: tuple[BlobVersion, ...]
    rest: bytes = b""
    files: tuple[Path, ...] = ()
    fused: tuple[tuple[str, tuple[str, ...]], ...] = ()
    prepared: bool = False

    def layer(self, name: str) -> Layer:
        """Return the layer of a name.

        Raises:
            KeyError: there is none.
        """
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    def readers(self, version: BlobVersion) -> tuple[Layer, ...]:
        """Return the layers that read a tensor, in order."""
        return tuple(layer for layer in self.layers if version in layer.reads)

    def with_layers(self, layers: Iterable[Layer]) -> CaffeNet:
        """Return the net with other layers: blob versions, inputs and outputs are found anew.

        Raises:
            ModelFileError: a layer reads a blob that nobody writes before it, or writes one that another writes.
        """
        net = make_net(self.head, layers)
        return replace(net, rest=self.rest, files=self.files, fused=self.fused, prepared=self.prepared)

    def original_names(self, layer_name: str) -> tuple[str, ...]:
        """Return the names of the original layers that a layer stands for, in their order: its own without fusion."""
        return next((names for name, names in self.fused if name == layer_name), (layer_name,))


def make_net(head: Message, layers: Iterable[Layer]) -> CaffeNet:
    """Connect layers to a net.

    Args:
        head: the fields of the prototxt that are no layers.
        layers: in their order. What they read and write is found from their bottoms and tops.

    Raises:
        ModelFileError: a layer reads a blob that nobody writes before it, or writes one that another writes.
    """
    layers = tuple(layers)
    fed = dict(_fed(head, layers))
    latest = {name: BlobVersion(name, 0) for name in head.texts("input")}
    writers = dict.fromkeys(latest, "the head of the net")
    connected = []
    for layer in layers:
        reads = tuple(_read(layer, bottom, latest) for bottom in layer.bottoms)
        for position, top in enumerate(layer.tops):
            in_place = layer.bottoms[position : position + 1] == (top,)
            if top in latest and not in_place:
                raise ModelFileError(
                    f"layer {layer.name!r} writes the blob {top!r}, which {writers[top]} writes too; only a layer that "
                    "reads a blob may write it again, in place"
                )
            latest[top] = BlobVersion(top, latest[top].version + 1 if in_place else 0)
            writers[top] = f"layer {layer.name!r}"
        connected.append(replace(layer, reads=reads, writes=tuple(latest[top] for top in layer.tops)))
    read = {version for layer in connected for version in layer.reads}
    outputs = tuple(
        version
        for layer in connected
        for version in layer.writes
        if version not in read and (version.version or version.blob not in fed)
    )
    return CaffeNet(head, tuple(connected), tuple(fed.items()), outputs)


def _read(layer: Layer, bottom: str, latest: dict[str, BlobVersion]) -> BlobVersion:
    if bottom not in latest:
        raise ModelFileError(
            f"layer {layer.name!r} reads the blob {bottom!r}, which no layer before it writes in the TEST phase and "
            "which is no input; layers stand behind those whose blobs they read"
        )
    return latest[bottom]


def _fed(head: Message, layers: Sequence[Layer]) -> list[tuple[str, tuple[int, ...]]]:
    """Return the blobs that have to be fed, and their shapes."""
    fed = list(zip(head.texts("input"), _head_shapes(head), strict=False))
    for layer in layers:
        if layer.type == "Input":
            shapes = [shape.integers("dim") for shape in layer.message.message("input_param").messages("shape")]
            if len(shapes) not in (0, 1, len(layer.tops)):
                raise ModelFileError(
                    f"Input layer {layer.name!r} has {len(layer.tops)} tops and {len(shapes)} shapes; give it one "
                    "shape for all, or one for each"
                )
            per_top = shapes if len(shapes) == len(layer.tops) else (shapes or [()]) * len(layer.tops)
            fed += zip(layer.tops, per_top, strict=True)
    return fed


def _head_shapes(head: Message) -> list[tuple[int, ...]]:
    names = head.texts("input")
    shapes = [shape.integers("dim") for shape in head.messages("input_shape")]
    dims = head.integers("input_dim")
    if shapes and dims:
        raise ModelFileError("the net has both input_dim and input_shape; keep input_shape and remove input_dim")
    if dims:
        shapes = [dims[start : start + 4] for start in range(0, len(dims), 4)]
    if shapes and (len(shapes) != len(names) or (dims and len(dims) != 4 * len(names))):
        what = f"{len(dims)} input_dim values (4 each are needed)" if dims else f"{len(shapes)} input_shape blocks"
        raise ModelFileError(f"the net has {len(names)} inputs and {what}; each input needs its shape")
    return shapes or [()] * len(names)
