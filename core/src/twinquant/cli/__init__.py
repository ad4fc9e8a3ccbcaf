"""THE COMMAND LINE: `twinquant save|plan|inspect|verify|plugins|demo`, one module per command."""

from __future__ import annotations

import argparse
import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version

from twinquant.cli import demo, inspect, plan, plugins, save, verify
from twinquant.cli.console import Console, LogLines
from twinquant.errors import TwinQuantError

__all__ = ["main"]

_OK, _INPUT_ERROR, _USAGE_ERROR = 0, 1, 2
_INTERRUPTED = 128 + 2
_BROKEN_PIPE = 128 + 13

_COMMANDS = (save, plan, inspect, verify, plugins, demo)
_LOG_LEVELS = (logging.WARNING, logging.INFO, logging.DEBUG)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code of the process.

    Args:
        argv: the arguments without the program's name; None means those of the process.

    Returns:
        0: done. 1: something about the user's input is wrong, or two twins disagree. 2: wrong usage.
        130: interrupted from the keyboard. 141: whoever read the output has gone.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A layer's name must not fail where the terminal lacks one of its letters.
            stream.reconfigure(errors="backslashreplace")
    parser = _build_parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as end:  # argparse has printed the help, the version or what is wrong
        return _USAGE_ERROR if end.code else _OK
    if "run" not in arguments:
        parser.print_help(sys.stderr)
        return _USAGE_ERROR
    return _run(arguments, Console(sys.stdout, sys.stderr))


def _run(arguments: argparse.Namespace, console: Console) -> int:
    """Run the chosen command; whatever the user caused becomes one paragraph and an exit code."""
    verbosity = min(getattr(arguments, "verbose", 0), len(_LOG_LEVELS) - 1)
    logging.basicConfig(format="%(message)s", level=_LOG_LEVELS[verbosity], handlers=[LogLines()])
    try:
        code: int = arguments.run(arguments, console)
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


def _build_parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    shared.add_argument("-v", "--verbose", action="count", help="tell what is being done; twice: in detail")

    parser = argparse.ArgumentParser(
        prog="twinquant",
        description="A model and its record become two twins: one to run in float, one for the device compiler.",
        epilog="Exit codes: 0 done; 1 something is wrong with the input, or the twins disagree; 2 wrong usage.",
        parents=[shared],
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {version('twinquant-core')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in _COMMANDS:
        sentence = command.HELP
        subparser = commands.add_parser(
            command.NAME, help=sentence, description=sentence[0].upper() + sentence[1:] + ".", parents=[shared]
        )
        command.add_arguments(subparser)
        subparser.set_defaults(run=command.run)
    return parser
