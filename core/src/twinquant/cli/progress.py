"""How far a long command is, shown on a terminal only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from twinquant.cli.console import Console

__all__ = ["Progress", "show_progress"]

Progress = Callable[[str, float], None]
"""Takes what is being done and which fraction of the whole is done, 0 to 1."""


@contextmanager
def show_progress(console: Console) -> Iterator[Progress | None]:
    """Yield what a long call reports its progress to: a bar with `rich`, lines without it, None off a terminal."""
    if not console.err.isatty():
        yield None
        return
    try:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, TaskProgressColumn, TextColumn
        from rich.progress import Progress as RichProgress
    except ImportError:
        yield _line_per_stage(console.err)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
    with RichProgress(*columns, console=RichConsole(file=console.err), transient=True) as bar:
        task = bar.add_task("", total=1.0)
        yield lambda stage, fraction: bar.update(task, description=stage, completed=fraction)


def _line_per_stage(err: TextIO) -> Progress:
    shown: list[str] = []

    def report(stage: str, fraction: float) -> None:
        if shown[-1:] != [stage]:
            shown.append(stage)
            err.write(f"{fraction:4.0%}  {stage}\n")

    return report
