"""Reading a prototxt into a tree, without a schema."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from google.protobuf import text_format

from twinquant.errors import ModelFileError
from twinquant_caffe.prototxt.literal import is_literal, is_whole_literal
from twinquant_caffe.prototxt.tree import Field, Message, Scalar

__all__ = ["parse_prototxt"]

_LINE_END = re.compile(r"\r\n|\n|\r")
_NAME = re.compile(r"\w+", re.ASCII)
_WORD_OR_NUMBER = re.compile(r"[\w.+-]+", re.ASCII)
_CLOSERS = {"{": "}", "<": ">"}
_DEEPEST = 100
"""Messages in messages; the limit of protobuf's own parsers."""


def parse_prototxt(source: Path | str) -> Message:
    """Read a prototxt: every field, whether anybody knows it or not, and the comments.

    Args:
        source: the path of a file, or the text itself.

    Returns:
        Its tree. Lists, as in `dim: [1, 3]`, become one field for each value.

    Raises:
        ModelFileError: the file cannot be read, is not text, or is no protobuf text; the message has line and column.
    """
    if isinstance(source, str):
        return _parse(source, "the prototxt")
    where = f"prototxt {str(source)!r}"
    try:
        data = source.read_bytes()
    except FileNotFoundError as error:
        raise ModelFileError(f"{where} does not exist; check the path") from error
    except (OSError, ValueError) as error:
        raise ModelFileError(f"{where} cannot be read: {error}") from error
    if (zero := data.find(0)) >= 0:
        raise ModelFileError(
            f"{where}: not text, as byte {zero} is a zero; is this the caffemodel? The prototxt comes first"
        )
    # Comments in other encodings than UTF-8 are carried through as they are.
    return _parse(data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape"), where)


def _parse(text: str, where: str) -> Message:
    lines = _LINE_END.split(text)
    tokens, comments = _tokens(lines)
    parser = _Parser(lines, tokens, comments, where)
    return parser.message("", None)


class _Token(NamedTuple):
    """A token with its place, from 0, the comment lines before it, and the comment behind it on its line."""

    text: str
    line: int
    column: int
    comments: tuple[str, ...]
    trailing: str = ""


def _tokens(lines: list[str]) -> tuple[list[_Token], tuple[str, ...]]:
    """Return the tokens of a text, and the comment lines behind the last one."""
    tokenizer = text_format.Tokenizer(lines, skip_comments=False)
    tokens: list[_Token] = []
    comments: list[str] = []
    while not tokenizer.AtEnd():
        # ParseError is the tokenizer's only public way to say where it is.
        place = tokenizer.ParseError("")
        line = place.GetLine() - 1
        if tokenizer.token.startswith("#"):
            comment = tokenizer.ConsumeComment().rstrip()
            if tokens and not comments and tokens[-1].line == line:
                tokens[-1] = tokens[-1]._replace(trailing=comment)
            else:
                comments.append(comment)
            continue
        tokens.append(_Token(tokenizer.token, line, place.GetColumn() - 1, tuple(comments)))
        comments.clear()
        tokenizer.NextToken()
    return tokens, tuple(comments)


class _Parser:
    """Recursive descent over tokens."""

    def __init__(self, lines: list[str], tokens: list[_Token], comments: tuple[str, ...], where: str) -> None:
        self._lines = lines
        self._where = where
        self._tokens = tokens
        self._end = _Token("", len(lines) - 1, len(lines[-1]), comments)
        self._next = 0
        self._depth = 0
        self._comments: list[str] = []
        """Comments before tokens that are not kept, such as those in lists."""

    @property
    def _token(self) -> _Token:
        return self._tokens[self._next] if self._next < len(self._tokens) else self._end

    def _take(self) -> _Token:
        token = self._token
        self._next += 1
        return token

    def message(self, closer: str, opener: _Token | None) -> Message:
        """Read fields up to the closing brace, which is left, or up to the end where `closer` is empty."""
        if self._depth > _DEEPEST:
            raise self._error(f"more than {_DEEPEST} blocks in one another", self._token)
        if opener and opener.trailing:
            self._comments.append(opener.trailing)
        fields: list[Field] = []
        while self._token.text != closer:
            if not self._token.text:
                opened = f", which was opened in line {opener.line + 1}" if opener else ""
                raise self._error(f"the text ends inside of a block{opened}; expected {closer!r}", self._token)
            fields += self._field()
        comments = (*self._pop_comments(), *self._token.comments)
        return Message(tuple(fields), comments, opener and self._between(opener, self._token))

    def _field(self) -> list[Field]:
        """Read a field; a list is several fields."""
        first = self._token
        self._comments += first.comments
        comments = self._pop_comments()
        name = self._name()
        colon = self._token.text == ":"
        if colon:
            self._keep_comments(self._take())
        values = self._list() if self._token.text == "[" else [self._value(name, colon)]
        trailing = self._tokens[self._next - 1].trailing
        if self._token.text in (",", ";"):
            separator = self._take()
            self._comments += separator.comments
            trailing = separator.trailing or trailing
        fields = [Field(name, value, line=first.line + 1) for value in values]
        if fields:
            fields[0] = Field(name, values[0], comments, trailing if len(fields) == 1 else "", first.line + 1)
        if len(fields) != 1:
            self._comments += [*comments] * (not fields) + [trailing] * bool(trailing)
        return fields

    def _name(self) -> str:
        """Read a field's name, or that of an extension: `[package.name]`."""
        token = self._take()
        if token.text == "[":
            parts = [token.text]
            while parts[-1] != "]":
                if not self._token.text or self._token.text in "{}<>":
                    raise self._error("the name of an extension is not closed; expected ']'", self._token)
                parts.append(self._take().text)
            return "".join(parts)
        if not _NAME.fullmatch(token.text):
            raise self._error(f"expected the name of a field, got {token.text!r}", token)
        return token.text

    def _value(self, name: str, colon: bool) -> Scalar | Message:
        token = self._take()
        if token.text in _CLOSERS:
            self._depth += 1
            message = self.message(_CLOSERS[token.text], token)
            self._depth -= 1
            self._take()
            return message
        if not colon:
            raise self._error(f"expected ':' or '{{' behind {name!r}, got {token.text or 'the end'!r}", token)
        self._comments += token.comments
        if is_literal(token.text):
            literals = [self._literal(token)]
            while is_literal(self._token.text):
                self._keep_comments(self._tokens[self._next - 1]._replace(comments=()))
                literals.append(self._literal(self._take()))
            return Scalar(" ".join(literals))
        if token.text == "-" and _WORD_OR_NUMBER.fullmatch(self._token.text):
            return Scalar(f"-{self._take().text}")
        if not _WORD_OR_NUMBER.fullmatch(token.text):
            raise self._error(f"expected a value of {name!r}, got {token.text or 'the end'!r}", token)
        return Scalar(token.text)

    def _literal(self, token: _Token) -> str:
        if not is_whole_literal(token.text):
            raise self._error(f"this text is not closed; expected {token.text[0]} before the end of the line", token)
        return token.text

    def _list(self) -> list[Scalar | Message]:
        """Read a list: of single values, or of messages."""
        opener = self._take()
        self._keep_comments(opener)
        values: list[Scalar | Message] = []
        while self._token.text != "]":
            if values:
                if self._token.text != ",":
                    raise self._error(
                        f"expected ',' or ']' in the list, got {self._token.text or 'the end'!r}", self._token
                    )
                self._keep_comments(self._take())
            values.append(self._value("the list", colon=True))
        self._comments += self._token.comments
        self._take()
        return values

    def _keep_comments(self, token: _Token) -> None:
        self._comments += [*token.comments, *filter(None, [token.trailing])]

    def _pop_comments(self) -> tuple[str, ...]:
        comments = tuple(self._comments)
        self._comments.clear()
        return comments

    def _between(self, opener: _Token, closer: _Token) -> str:
        """Return the text between two tokens."""
        lines = self._lines[opener.line : closer.line + 1]
        lines[-1] = lines[-1][: closer.column]
        lines[0] = lines[0][opener.column + 1 :]
        return "\n".join(lines)

    def _error(self, problem: str, token: _Token) -> ModelFileError:
        return ModelFileError(f"{self._where}, line {token.line + 1}, column {token.column + 1}: {problem}")
