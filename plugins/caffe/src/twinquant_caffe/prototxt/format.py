"""Writing a tree as a prototxt."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from twinquant_caffe.prototxt.tree import Field, Message

__all__ = ["format_message"]

_INDENT = "  "


def format_message(message: Message) -> str:
    """Return the text of a prototxt.

    Blocks that are as they were read are written letter for letter; in others every field takes a line.

    Args:
        message: the whole file.
    """
    return "".join(f"{line}\n" for line in _lines(message, ""))


def _lines(message: Message, indent: str) -> Iterator[str]:
    for item in message:
        yield from _comments(item.comments, indent)
        yield from _field_lines(item, indent)
    yield from _comments(message.comments, indent)


def _comments(comments: Iterable[str], indent: str) -> Iterator[str]:
    for comment in comments:
        yield f"{indent}{comment}"


def _field_lines(item: Field, indent: str) -> Iterator[str]:
    trailing = f"  {item.trailing}" if item.trailing else ""
    if not isinstance(item.value, Message):
        yield f"{indent}{item.name}: {item.value.text}{trailing}"
    elif item.value.source is not None:
        yield f"{indent}{item.name} {{{item.value.source}}}{trailing}"
    else:
        yield f"{indent}{item.name} {{"
        yield from _lines(item.value, indent + _INDENT)
        yield f"{indent}}}{trailing}"
