"""Keeping what torch's exporters print, log and warn of from the user's terminal."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch

__all__ = ["quiet"]

_logger = logging.getLogger(__name__)


@contextlib.contextmanager
def quiet(frozen: list[str]) -> Iterator[None]:
    """Log what the exporters print, log and warn of: it is about their internals and packages that are not installed.

    A TracerWarning about the user's code is another matter: the older exporter has stored a value of the example inputs
    as a constant. Such warnings are added to `frozen`.
    """
    loggers = [logging.getLogger(name) for name in logging.root.manager.loggerDict if name.partition(".")[0] == "torch"]
    handlers = [handler for logger in loggers for handler in logger.handlers]
    chatter = io.StringIO()
    for handler in handlers:
        handler.addFilter(_nothing)
    try:
        with (
            warnings.catch_warnings(record=True) as caught,
            _quiet_descriptors(),
            contextlib.redirect_stdout(chatter),
            contextlib.redirect_stderr(chatter),
        ):
            warnings.simplefilter("always")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(_nothing)
        if chatter.getvalue():
            _logger.debug("%s", chatter.getvalue())
    own = str(Path(torch.__file__).parent)
    for warning in caught:
        message = f"{warning.filename}, line {warning.lineno}: {warning.message}"
        _logger.debug("%s", message)
        if warning.category.__name__ == "TracerWarning" and not warning.filename.startswith(own):
            frozen.append(message)


@contextlib.contextmanager
def _quiet_descriptors() -> Iterator[None]:
    """Log what C++ writes to the file descriptors 1 and 2, which Python's own streams know nothing of."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    with contextlib.ExitStack() as stack:
        kept: dict[int, int] = {}
        try:
            for descriptor in (1, 2):
                kept[descriptor] = os.dup(descriptor)
                stack.callback(os.close, kept[descriptor])
        except OSError:  # there is no terminal that anything could reach
            yield
            return
        with tempfile.TemporaryFile() as written:
            for descriptor in kept:
                os.dup2(written.fileno(), descriptor)
            try:
                yield
            finally:
                for descriptor, original in kept.items():
                    os.dup2(original, descriptor)
                written.seek(0)
                if text := written.read().decode(errors="replace"):
                    _logger.debug("%s", text)


def _nothing(_: logging.LogRecord) -> bool:
    return False
