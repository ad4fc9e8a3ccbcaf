"""Tables and progress, on a terminal and off it, with rich and without."""

from __future__ import annotations

import io
import sys

import pytest

from twinquant.cli.console import Console
from twinquant.cli.progress import show_progress

HEADER = ("layer", "type")
ROWS = [("convolution_1", "Conv"), ("[bold]fc", "Gemm")]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def without_rich(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for name in [*(name for name in sys.modules if name.partition(".")[0] == "rich"), "rich"]:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def with_rich(monkeypatch):
    pytest.importorskip("rich", reason="rich comes with the twinquant distribution, not with the core")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "80")


def plain_table():
    return "layer          type\n-------------  ----\nconvolution_1  Conv\n[bold]fc       Gemm\n"


def test_off_a_terminal_a_table_is_aligned_text():
    console = Console(io.StringIO(), io.StringIO())
    console.table(HEADER, ROWS)
    assert console.out.getvalue() == plain_table()


def test_on_a_terminal_without_rich_a_table_is_aligned_text(without_rich):
    console = Console(Terminal(), Terminal())
    console.table(HEADER, ROWS)
    assert console.out.getvalue() == plain_table()


def test_on_a_terminal_with_rich_a_table_is_drawn_and_names_are_not_taken_for_markup(with_rich):
    console = Console(Terminal(), Terminal())
    console.table(HEADER, ROWS)
    drawn = console.out.getvalue()
    assert "convolution_1" in drawn
    assert "[bold]fc" in drawn
    assert "─" in drawn


def test_control_characters_in_names_are_spelled_out():
    console = Console(io.StringIO(), io.StringIO())
    console.table(("layer",), [("a\x1b[2Jb\nc",)])
    assert console.out.getvalue().splitlines()[-1] == r"a\x1b[2Jb\nc"


def test_a_table_without_rows_is_its_header():
    console = Console(io.StringIO(), io.StringIO())
    console.table(HEADER, [])
    assert console.out.getvalue() == "layer  type\n-----  ----\n"


def test_off_a_terminal_there_is_no_progress():
    with show_progress(Console(io.StringIO(), io.StringIO())) as progress:
        assert progress is None


def test_on_a_terminal_without_rich_progress_is_one_line_per_stage(without_rich):
    console = Console(Terminal(), Terminal())
    with show_progress(console) as progress:
        progress("loading", 0.0)
        progress("writing [a/b]", 0.25)
        progress("writing [a/b]", 0.5)
        progress("done", 1.0)
    assert console.err.getvalue() == "  0%  loading\n 25%  writing [a/b]\n100%  done\n"
    assert console.out.getvalue() == ""


def test_on_a_terminal_with_rich_progress_is_a_bar_on_stderr(with_rich):
    console = Console(Terminal(), Terminal())
    with show_progress(console) as progress:
        progress("writing [a/b]", 0.5)
    assert "writing [a/b]" in console.err.getvalue()
    assert "50%" in console.err.getvalue()
    assert console.out.getvalue() == ""


def test_an_error_ends_the_bar(with_rich):
    console = Console(Terminal(), Terminal())
    with pytest.raises(ValueError, match="broken"), show_progress(console) as progress:
        progress("writing", 0.5)
        raise ValueError("broken")
    assert console.err.getvalue().endswith("\x1b[2K") or "\x1b[?25h" in console.err.getvalue()
