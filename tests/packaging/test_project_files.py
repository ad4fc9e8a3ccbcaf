"""The files around the code say what the code does."""

from __future__ import annotations

import importlib.metadata
import re
from pathlib import Path

import pytest

from twinquant.cli.parser import COMMANDS

ROOT = Path(__file__).resolve().parents[2]


def test_the_changelog_has_an_entry_for_this_version():
    version = importlib.metadata.version("twinquant-core")
    assert re.search(rf"^## \[{re.escape(version)}\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize("end", [r"\.venv/bin/twinquant demo", r"\.venv/bin/python -m pytest -n auto --dist loadfile"])
def test_the_readme_has_one_pasted_line_that_sets_everything_up(end):
    line = rf"^python3 -m venv \.venv && \.venv/bin/python -m pip install -r requirements-dev\.txt && {end}$"
    assert re.search(line, (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize(
    "document", sorted(ROOT.glob("*.md")) + sorted(ROOT.glob("docs/**/*.md")), ids=lambda p: p.name
)
def test_every_link_inside_the_project_leads_somewhere(document):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text("utf-8"))
    assert [target for target in targets if not (document.parent / target).exists()] == []


def test_every_decision_is_listed_in_the_documentation():
    index = (ROOT / "docs" / "index.md").read_text("utf-8")
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [page.name for page in pages if f"(decisions/{page.name})" not in index] == []


def test_every_command_of_the_command_line_is_in_the_readme():
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [name for name in COMMANDS if f"twinquant {name}" not in readme] == []
