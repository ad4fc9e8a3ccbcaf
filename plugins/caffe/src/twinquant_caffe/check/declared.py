"""The layers that a deploy prototxt declares."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from twinquant.errors import ModelFileError
from twinquant_caffe.prototxt import Message

__all__ = ["DeclaredLayer", "declared_layers", "guarded"]


@dataclass(frozen=True, slots=True)
class DeclaredLayer:
    """One layer of a prototxt.

    Attributes:
        place: its position among the layers, from 0.
        name: its name.
        type: its type.
        bottoms: names of the blobs it reads.
        tops: names of the blobs it writes.
        message: the whole `layer { }`.
    """

    place: int
    name: str
    type: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    message: Message

    @property
    def label(self) -> str:
        """What a sentence calls it."""
        return f"layer {self.name!r} ({self.type})" if self.name else f"the layer number {self.place + 1}"


def declared_layers(message: Message) -> tuple[DeclaredLayer, ...]:
    """Return the layers of a prototxt in their order."""
    return tuple(
        DeclaredLayer(place, layer.text("name"), layer.text("type"), layer.texts("bottom"), layer.texts("top"), layer)
        for place, layer in enumerate(message.messages("layer"))
    )


def guarded(problems: Iterator[str]) -> Iterator[str]:
    """Yield what a rule finds; a field that it cannot read is one problem more, and the end of this rule only."""
    try:
        yield from problems
    except ModelFileError as error:
        yield str(error)
