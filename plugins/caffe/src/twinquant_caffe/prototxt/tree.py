"""A prototxt as a tree: every field in its order, known or not; values keep the text they were written with."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from twinquant.errors import ModelFileError
from twinquant_caffe.prototxt.literal import Identifier, is_literal, literal_text, unquote

__all__ = ["Field", "Identifier", "Message", "Scalar", "Value", "make"]

_T = TypeVar("_T")

_INTEGER = re.compile(r"[+-]?(?:0[xX][0-9a-fA-F]+|0[0-7]+|[0-9]+)")
_FLAGS = {"true": True, "True": True, "t": True, "1": True, "false": False, "False": False, "f": False, "0": False}


@dataclass(frozen=True, slots=True)
class Scalar:
    """A value as it was written: a number, an identifier (true, MAX, ...) or a string literal with its quotes."""

    text: str


@dataclass(frozen=True, slots=True)
class Field:
    """One field.

    Attributes:
        name: its name.
        value: what it holds.
        comments: the comment lines before it, each with its `#`.
        trailing: the comment behind it on the same line, with its `#`, or "".
        line: where it was read, from 1; 0: it was not read.
    """

    name: str
    value: Scalar | Message
    comments: tuple[str, ...] = ()
    trailing: str = ""
    line: int = field(default=0, compare=False)


@dataclass(frozen=True, slots=True)
class Message:
    """The fields of a message in their order. Nothing is edited: methods return new messages.

    Readers take a field name; those of one value take the last, as protobuf does. A value of another kind than the
    reader's raises ModelFileError, which names the line, the field and what was expected.

    Attributes:
        fields: the fields.
        comments: comment lines behind the last field.
        source: the text it was read from, without the braces, which is what is written again; None: it was made.
    """

    fields: tuple[Field, ...] = ()
    comments: tuple[str, ...] = ()
    source: str | None = field(default=None, compare=False, repr=False)

    def __iter__(self) -> Iterator[Field]:
        return iter(self.fields)

    def has(self, name: str) -> bool:
        """Tell whether there is a field of this name."""
        return any(item.name == name for item in self.fields)

    def text(self, name: str, default: str = "") -> str:
        """Return a string literal without quotes and escapes, or a bare word."""
        return self._last(name, _as_text, default)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return all values of a field of texts."""
        return self._all(name, _as_text)

    def raw(self, name: str, default: bytes = b"") -> bytes:
        """Return the bytes that a string literal stands for."""
        return self._last(name, _as_bytes, default)

    def integer(self, name: str, default: int) -> int:
        """Return a whole number."""
        return self._last(name, _as_integer, default)

    def integers(self, name: str) -> tuple[int, ...]:
        """Return all values of a field of whole numbers."""
        return self._all(name, _as_integer)

    def number(self, name: str, default: float) -> float:
        """Return a number of any kind, `inf` and `nan` included."""
        return self._last(name, _as_number, default)

    def flag(self, name: str, default: bool) -> bool:
        """Return a truth value."""
        return self._last(name, _as_flag, default)

    def choice(self, name: str, names: Sequence[str]) -> str:
        """Return a value of an enumeration by name; protobuf allows to write its number.

        Args:
            name: the field's name.
            names: the enumeration's values by number. The first is the default. Others are returned as written.
        """
        text = self.text(name, names[0])
        return names[int(text)] if text.isdecimal() and int(text) < len(names) else text

    def message(self, name: str) -> Message:
        """Return a message, or several merged, as protobuf does; an empty one if there is none."""
        found = self.messages(name)
        return found[0] if len(found) == 1 else Message(tuple(item for part in found for item in part))

    def messages(self, name: str) -> tuple[Message, ...]:
        """Return all messages of a field."""
        return self._all(name, _as_message)

    def without(self, *names: str) -> Message:
        """Return a message that lacks all fields of these names."""
        kept = tuple(item for item in self.fields if item.name not in names)
        return self if len(kept) == len(self.fields) else Message(kept, self.comments)

    def replaced(self, name: str, *values: Value) -> Message:
        """Return a message whose field has these values, in the place of the first old one, else at the end."""
        new = tuple(_field(name, value) for value in values)
        places = [index for index, item in enumerate(self.fields) if item.name == name]
        if not places:
            return Message((*self.fields, *new), self.comments)
        first = places[0]
        old = self.fields[first]
        new = (*(replace(item, comments=old.comments, trailing=old.trailing) for item in new[:1]), *new[1:])
        after = tuple(item for item in self.fields[first:] if item.name != name)
        return Message((*self.fields[:first], *new, *after), self.comments)

    def plus(self, name: str, value: Value) -> Message:
        """Return a message with one more field, at the end."""
        return Message((*self.fields, _field(name, value)), self.comments)

    def _last(self, name: str, convert: Callable[[Field], _T], default: _T) -> _T:
        return next((convert(item) for item in reversed(self.fields) if item.name == name), default)

    def _all(self, name: str, convert: Callable[[Field], _T]) -> tuple[_T, ...]:
        return tuple(convert(item) for item in self.fields if item.name == name)


Value = str | int | float | bool | bytes | Message
"""What a field can be made of; the formatter of single values is `literal_text`."""


def make(**fields: Value | Sequence[Value]) -> Message:
    """Return a message.

    Args:
        **fields: a value for each field, or a tuple or list of them for a repeated one. A `str` becomes a quoted
            literal, an `Identifier` a bare word, `bytes` an escaped literal, a float the shortest text that reads back
            to the same float32.
    """
    return Message(
        tuple(
            _field(name, value)
            for name, values in fields.items()
            for value in (values if isinstance(values, (tuple, list)) else (values,))
        )
    )


def _field(name: str, value: Value) -> Field:
    return Field(name, value if isinstance(value, Message) else Scalar(literal_text(value)))


def _refuse(item: Field, expected: str) -> ModelFileError:
    where = f"line {item.line} of the prototxt: " if item.line else ""
    got = item.value.text if isinstance(item.value, Scalar) else "{ ... }"
    return ModelFileError(f"{where}the field {item.name!r} has to be {expected}, got {got}")


def _as_text(item: Field) -> str:
    if not isinstance(item.value, Scalar):
        raise _refuse(item, "a text")
    text = item.value.text
    return unquote(text).decode("utf-8", "surrogateescape") if is_literal(text) else text


def _as_bytes(item: Field) -> bytes:
    if not isinstance(item.value, Scalar) or not is_literal(item.value.text):
        raise _refuse(item, "a text in quotes")
    return unquote(item.value.text)


def _as_integer(item: Field) -> int:
    if not isinstance(item.value, Scalar) or not _INTEGER.fullmatch(item.value.text):
        raise _refuse(item, "a whole number")
    text = item.value.text
    digits = text.lstrip("+-")
    octal = len(digits) > 1 and digits.isdecimal() and digits[0] == "0"
    return int(text, 8 if octal else 0)


def _as_number(item: Field) -> float:
    if isinstance(item.value, Scalar) and not is_literal(item.value.text):
        text = item.value.text.lower()
        if _INTEGER.fullmatch(text):
            return float(_as_integer(item))
        if "_" not in text:
            try:
                return float(text if text.endswith("inf") else text.removesuffix("f"))
            except ValueError:
                raise _refuse(item, "a number") from None
    raise _refuse(item, "a number")


def _as_flag(item: Field) -> bool:
    if not isinstance(item.value, Scalar) or item.value.text not in _FLAGS:
        raise _refuse(item, "true or false")
    return _FLAGS[item.value.text]


def _as_message(item: Field) -> Message:
    if isinstance(item.value, Scalar):
        raise _refuse(item, "a block in braces")
    return item.value
