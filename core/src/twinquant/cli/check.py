"""`twinquant check`: would the device compiler take a deploy twin?"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from twinquant.cli.console import Console
from twinquant.cli.numbers import count
from twinquant.errors import CapabilityError, ModelFileError, PluginError
from twinquant.outputs import Flavor, parse_save_path, recover
from twinquant.registry import Capability, Framework, select_framework

__all__ = ["run"]

_STEM = f"{Flavor.DEPLOY.value}_model"
"""How the names of deploy models end, before their suffix. The prefix may itself end like that."""


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Print what the device compiler would refuse, a line each, and the verdict; 1 if there is anything."""
    framework, model = _open(arguments.deploy, arguments.framework)
    problems = framework.check(model)
    for problem in problems:
        console.line(problem)
    if problems:
        console.line(f"\n{model}: REFUSED, {count(len(problems), 'problem')}")
        return 1
    console.line(f"{model}: accepted")
    return 0


def _open(given: str, name: str | None) -> tuple[Framework, Path]:
    """Find the deploy model that a path or a prefix means, and the framework that can check it."""
    path = Path(given)
    if path.is_file():
        recover(path.parent)
        framework = select_framework(path, name)
        if Capability.CHECK not in framework.capabilities:
            raise CapabilityError(f"the {framework.name} plugin cannot check deploy models (in this version)")
        return framework, path
    target = parse_save_path(given)
    recover(target.folder)
    stem = f"{target.prefix}_{_STEM}" if target.prefix else _STEM
    found = [file for file in sorted(_files(target.folder)) if file.stem == stem]
    for file, framework in _readers(found, name):
        if Capability.CHECK in framework.capabilities:
            return framework, file
    if found:
        shown = ", ".join(file.name for file in found)
        raise CapabilityError(f"no installed plugin can check the deploy model that {given!r} means: {shown}")
    raise ModelFileError(
        f"there is no deploy model {str(target.folder / stem)!r} with any ending: give the save_path of a save that "
        "wrote one, or the deploy model's file"
    )


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.iterdir() if file.is_file()) if folder.is_dir() else iter(())


def _readers(files: list[Path], name: str | None) -> Iterator[tuple[Path, Framework]]:
    """Pair every file that a framework claims with it."""
    for file in files:
        with suppress(PluginError):  # weights, texts: a file that is no model of anybody's
            yield file, select_framework(file, name)
