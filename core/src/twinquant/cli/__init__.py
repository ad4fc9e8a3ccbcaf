"""THE COMMAND LINE: `twinquant quantize|calibrate|save|plan|inspect|verify|check|plugins|demo`, a module a command."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from twinquant.cli.console import Console, LogLines
from twinquant.cli.parser import build_parser
from twinquant.errors import TwinQuantError

__all__ = ["main"]

_OK, _INPUT_ERROR, _USAGE_ERROR = 0, 1, 2
_INTERRUPTED = 128 + 2
_BROKEN_PIPE = 128 + 13

_LOG_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code of the process.

    Args:
        argv: the arguments without the program's name; None means those of the process.

    Returns:
        0: done. 1: something about the user's input is wrong, or two twins disagree. 2: wrong usage.
        130: interrupted from the keyboard. 141: whoever read the output has gone.
    """
    # A caller may have closed a stream: there is nobody to tell, and the command runs all the same.
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115  it stays open as long as the process lives
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115  the same
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A layer's name must not fail where the terminal lacks one of its letters.
            stream.reconfigure(errors="backslashreplace")
    parser = build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as end:  # argparse has printed the help, the version or what is wrong
        return _USAGE_ERROR if end.code else _OK
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return _USAGE_ERROR
    return _run(arguments, Console(sys.stdout, sys.stderr))


def _run(arguments: argparse.Namespace, console: Console) -> int:
    """Run the chosen command; whatever the user caused becomes one paragraph and an exit code."""
    verbosity = min(getattr(arguments, "verbose", 0), len(_LOG_LEVELS) - 1)
    logging.basicConfig(format="%(message)s", level=_LOG_LEVELS[verbosity], handlers=[LogLines()])
    try:
        code: int = import_module(f"twinquant.cli.{arguments.command}").run(arguments, console)
        console.flush()
    except BrokenPipeError:
        # The interpreter flushes stdout once more at exit, which would complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except (TwinQuantError, OSError) as error:
        if getattr(arguments, "debug", False):
            traceback.print_exception(error, file=console.err)
        console.error(str(error))
        return _INPUT_ERROR
    return code
