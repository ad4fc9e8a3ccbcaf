"""Keeping what torch's exporters print, log and warn of from the user's terminal, and nothing else."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import torch

__all__ = ["quiet"]

_logger = logging.getLogger(__name__)

_EXPORTERS = frozenset({"torch", "onnxscript", "onnx_ir"})
"""The packages whose loggers tell of the exporters' internals."""

_FROM_CPP = re.compile(
    rb"^(\[[WEI]\d{4} [^\n\]]*\]|Warning:)[^\n]*\n?|^Torch IR graph at exception:.*?^  return [^\n]*\n+",
    re.MULTILINE | re.DOTALL,
)
"""What torch's C++ writes by itself: warnings of a line, and the graph in which it has found an error."""


@contextlib.contextmanager
def quiet(frozen: list[str], *, descriptors: bool = False) -> Iterator[None]:
    """Log what the exporters print, log and warn of: it is about their internals and packages that are not installed.

    What other threads print, log and warn of in the meantime is shown as ever.

    A TracerWarning about the user's code is another matter: the older exporter has stored a value of the example inputs
    as a constant. Such warnings are added to `frozen`.

    Args:
        frozen: gets the warnings about the user's code.
        descriptors: whether C++ writes, too, as in the older exporter. What goes to the file descriptors meanwhile from
            anywhere else is written when the exporter has ended.
    """
    chatter = io.StringIO()
    with contextlib.ExitStack() as stack:
        if descriptors:
            stack.enter_context(_quiet_descriptors())
        stack.enter_context(_quiet_loggers())
        stack.enter_context(_quiet_warnings(frozen))
        for redirect, stream in (
            (contextlib.redirect_stdout, sys.stdout),
            (contextlib.redirect_stderr, sys.stderr),
        ):
            own = _OwnThread(chatter, stream)
            stack.callback(own.stop)
            stack.enter_context(redirect(own))
        yield
    if chatter.getvalue():
        _logger.debug("%s", chatter.getvalue())


class _OwnThread:
    """A stream that keeps what this thread writes, and hands on what others do.

    Args:
        chatter: gets what this thread writes, until `stop`.
        stream: what this object stands for.
    """

    def __init__(self, chatter: io.StringIO, stream: TextIO) -> None:
        self._chatter, self._stream, self._thread = chatter, stream, threading.get_ident()

    def stop(self) -> None:
        """Hand on everything from now on: somebody may have kept this object."""
        self._thread = 0

    def write(self, text: str) -> int:
        """Write a text."""
        return (self._chatter if threading.get_ident() == self._thread else self._stream).write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _quiet_loggers() -> Iterator[None]:
    """Keep records of this thread about the exporters from all handlers."""
    thread = threading.get_ident()

    def is_of_others(record: logging.LogRecord) -> bool:
        return record.thread != thread or record.name.partition(".")[0] not in _EXPORTERS

    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in _EXPORTERS]
    loggers = [logging.root, *map(logging.getLogger, names)]
    handlers = {handler for logger in loggers for handler in logger.handlers}
    if logging.lastResort is not None:
        handlers.add(logging.lastResort)
    for handler in handlers:
        handler.addFilter(is_of_others)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(is_of_others)


@contextlib.contextmanager
def _quiet_warnings(frozen: list[str]) -> Iterator[None]:
    """Keep warnings of this thread; the filters of Python belong to all threads, so others' are shown afterwards."""
    thread = threading.get_ident()
    own: list[tuple[Any, ...]] = []
    others: list[tuple[Any, ...]] = []

    def keep(message: Any, category: Any, filename: str, lineno: int, file: Any = None, line: Any = None) -> None:
        del file, line
        (own if threading.get_ident() == thread else others).append((message, category, filename, lineno))

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = keep
            yield
    finally:
        for warning in others:
            with contextlib.suppress(Warning):  # where warnings are errors, it is no error of this thread
                warnings.warn_explicit(*warning)
    torchs_own = str(Path(torch.__file__).parent)
    for message, category, filename, lineno in own:
        text = f"{filename}, line {lineno}: {message}"
        _logger.debug("%s", text)
        if category.__name__ == "TracerWarning" and not filename.startswith(torchs_own):
            frozen.append(text)


@contextlib.contextmanager
def _quiet_descriptors() -> Iterator[None]:
    """Log what C++ writes to the file descriptors 1 and 2, which Python's own streams know nothing of."""
    _flush()
    with contextlib.ExitStack() as stack:
        kept: dict[int, int] = {}
        try:
            for descriptor in (1, 2):
                kept[descriptor] = os.dup(descriptor)
                stack.callback(os.close, kept[descriptor])
        except OSError:  # there is no terminal that anything could reach
            yield
            return
        files = {descriptor: stack.enter_context(tempfile.TemporaryFile()) for descriptor in kept}
        for descriptor, file in files.items():
            os.dup2(file.fileno(), descriptor)
        try:
            yield
        finally:
            _flush()
            for descriptor, original in kept.items():
                os.dup2(original, descriptor)
                files[descriptor].seek(0)
                _hand_on(files[descriptor].read(), original)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()


def _hand_on(written: bytes, descriptor: int) -> None:
    """Write everything but what comes from torch's C++, which is logged."""
    for found in _FROM_CPP.finditer(written):
        _logger.debug("%s", found[0].decode(errors="replace"))
    rest = _FROM_CPP.sub(b"", written)
    with contextlib.suppress(OSError):
        while rest:
            rest = rest[os.write(descriptor, rest) :]
