"""The plugin author's guide names every hook, argument, method and field as the code has them."""

import dataclasses
import inspect
import re
from itertools import dropwhile, takewhile
from pathlib import Path

import pytest

from twinquant.plan import LayerInfo
from twinquant.registry import DISABLE_VARIABLE, ENTRY_POINT_GROUP, PLUGIN_API, Capability, Framework, Match, hookspecs
from twinquant.testing.subject import Subject

ROOT = Path(__file__).resolve().parents[3]
GUIDE = (ROOT / "docs" / "writing_a_plugin.md").read_text("utf-8")
TOY = ROOT / "examples" / "twinquant-toy"


def _is_row(line):
    return line.startswith("|")


def table_under(heading):
    """Return the first column of the first table after a heading or a phrase of the guide."""
    lines = GUIDE[GUIDE.index(heading) :].splitlines()
    rows = list(takewhile(_is_row, dropwhile(lambda line: not _is_row(line), lines)))
    return [re.match(r"\| `([^`]+)`", row).group(1) for row in rows[2:]]


def signature(function):
    """Spell a function as the guide does: its name and the names of its arguments."""
    arguments = [name for name in inspect.signature(function).parameters if name != "self"]
    return f"{function.__name__}({', '.join(arguments)})"


def public_functions(owner):
    return [
        function for name, function in vars(owner).items() if inspect.isfunction(function) and not name.startswith("_")
    ]


def test_every_hook_and_its_arguments_are_documented():
    assert table_under("### Hooks") == [signature(hook) for hook in public_functions(hookspecs)]


def test_every_method_and_its_arguments_are_documented():
    assert table_under("### All methods") == [signature(method) for method in public_functions(Framework)]


def test_the_abstract_methods_are_those_called_required():
    required = re.findall(r"^\| `(\w+)\([^)]*\)` \| yes \|", GUIDE, re.MULTILINE)
    assert set(required) == set(Framework.__abstractmethods__)


def test_every_capability_is_documented_at_its_method():
    documented = re.findall(r"^\| `(\w+)\([^)]*\)` \| `Capability\.(\w+)` \|", GUIDE, re.MULTILINE)
    assert documented == [(capability.value, capability.name) for capability in Capability]


def test_every_claim_is_documented_with_its_value():
    documented = re.findall(r"^\| `Match\.(\w+)` \| (\d) \|", GUIDE, re.MULTILINE)
    assert documented == [(match.name, str(match.value)) for match in Match]


def test_every_field_of_a_layer_is_documented():
    assert table_under("`layers` describes") == [field.name for field in dataclasses.fields(LayerInfo)]


def test_what_the_contract_tests_let_override_is_documented():
    documented = {re.sub(r"\(.*", "", name) for name in table_under("What may be overridden")}
    own_steps = {"source", "graph", "plan", "write"}
    names = {name for name in {**vars(Subject), **Subject.__annotations__} if not name.startswith("_")}
    assert documented == names - own_steps


@pytest.mark.parametrize("name", [ENTRY_POINT_GROUP, DISABLE_VARIABLE, f"(now {PLUGIN_API})"])
def test_the_names_that_an_author_needs_are_there(name):
    assert name in GUIDE


def test_every_line_of_toy_code_in_the_guide_is_in_the_toy():
    sources = [path.read_text("utf-8") for path in (TOY / "src" / "twinquant_toy").glob("*.py")]
    blocks = re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL)
    sketches = ("path.write_text(...)", "capabilities = ")
    quoted = [block for block in blocks if not any(sketch in block for sketch in sketches)]
    assert len(quoted) == 7
    assert [block for block in quoted if not any(block in source for source in sources)] == []


def test_the_entry_point_in_the_guide_is_that_of_the_toy():
    lines = f'[project.entry-points."{ENTRY_POINT_GROUP}"]\ntoy = "twinquant_toy.plugin"\n'
    assert lines in GUIDE
    assert lines in (TOY / "pyproject.toml").read_text("utf-8")
