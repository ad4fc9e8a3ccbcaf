"""Every installed plugin ends as a framework or as a state that says why not."""

import sys

import pytest

from twinquant.errors import ArgumentError
from twinquant.registry import Framework, Match, Registry, State

STATES = """
import json, sys
from twinquant.registry import plugin_states
states = {s.name: [s.state.value, s.distribution, s.version, s.reason] for s in plugin_states()}
print(json.dumps([states, sorted(name for name in sys.modules if name.startswith("fake_plugin"))]))
"""


class HostFramework(Framework):
    name = "host"

    def recognize(self, source):
        return Match.NO

    def load(self, source):
        return source

    def layers(self, graph):
        return ()

    def insert(self, graph, plan, flavor):
        return graph

    def write(self, graph, folder, prefix, flavor):
        return ()


def test_a_good_plugin_is_ok(site):
    site.add("fake", version="2.5")
    state = site.registry().state("fake")
    assert (state.state, state.distribution, state.version) == (State.OK, "twinquant-fake", "2.5")
    assert (state.reason, state.install, state.cause) == ("", "", None)


def test_a_known_framework_that_is_not_installed_is_absent_with_its_install_line(site):
    state = site.registry().state("onnx")
    assert state.state is State.ABSENT
    assert state.distribution == "twinquant-onnx"
    assert state.install == 'pip install "twinquant[onnx]"'


def test_a_plugin_that_fails_to_import_is_broken_with_its_exception(site):
    site.add("fake", "import a_module_that_is_not_there")
    state = site.registry().state("fake")
    assert state.state is State.BROKEN
    assert state.reason == "ModuleNotFoundError: No module named 'a_module_that_is_not_there'"
    assert isinstance(state.cause, ModuleNotFoundError)
    assert state.install == "pip install --force-reinstall twinquant-fake"


def test_a_broken_plugin_of_ours_is_repaired_by_its_extra(site):
    site.add("onnx", "import a_module_that_is_not_there")
    assert site.registry().state("onnx").install == 'pip install "twinquant[onnx]"'


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("def broken(:", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("assert False", "AssertionError"),
        ("PLUGIN_API = 1", "got nothing"),
    ],
)
def test_a_plugin_that_fails_in_any_way_is_broken_and_the_others_work(site, source, reason):
    site.add("bad", source)
    site.add("good")
    registry = site.registry()
    assert registry.state("bad").state is State.BROKEN
    assert reason in registry.state("bad").reason
    assert list(registry.frameworks) == ["good"]


@pytest.mark.parametrize("answer", ["Fake", "None", "'fake'", "object()"])
def test_a_hook_that_returns_no_framework_instance_makes_the_plugin_broken(site, answer):
    site.add("fake", site.plugin("fake").replace("return Fake()", f"return {answer}"))
    state = site.registry().state("fake")
    assert state.state is State.BROKEN
    assert "must return one instance of twinquant.registry.Framework" in state.reason


def test_a_framework_that_lacks_a_method_is_broken(site):
    site.add("fake", site.plugin("fake").replace("def load", "def lode"))
    state = site.registry().state("fake")
    assert state.state is State.BROKEN
    assert "load" in state.reason


def test_a_framework_with_another_name_than_its_entry_point_is_broken(site):
    site.add("fake", site.plugin("genuine"))
    state = site.registry().state("fake")
    assert state.state is State.BROKEN
    assert "'fake'" in state.reason
    assert "'genuine'" in state.reason


@pytest.mark.parametrize(
    "hook",
    [
        "@hookimpl\ndef twinquant_unheard_of(): pass",
        "@hookimpl\ndef twinquant_saved(framework, color): pass",
        "@hookimpl(specname='twinquant_saved')\ndef watch(nothing): pass",
    ],
)
def test_an_unknown_hook_or_argument_makes_the_plugin_broken_and_leaves_nothing_registered(site, hook):
    site.add("bad", f"{site.plugin('bad')}\n{hook}\n")
    site.add("good")
    registry = site.registry()
    assert registry.state("bad").state is State.BROKEN
    assert registry.state("bad").reason.startswith("PluginValidationError")
    assert registry.state("good").state is State.OK
    registry.notify_saved("good", None, None)
    assert list(registry.frameworks) == ["good"]


@pytest.mark.parametrize(
    ("line", "phrases", "upgrade"),
    [
        ("PLUGIN_API = 2", ["interface 2", "offers 1"], "twinquant-core"),
        ("PLUGIN_API = 0", ["interface 0", "offers 1"], "twinquant-fake"),
        ("PLUGIN_API = '1'", ["interface '1'", "offers 1"], "twinquant-fake"),
        ("", ["no plugin interface", "offers 1"], "twinquant-fake"),
    ],
)
def test_another_plugin_interface_is_incompatible_and_says_what_to_upgrade(site, line, phrases, upgrade):
    site.add("fake", site.plugin("fake").replace("PLUGIN_API = 1", line))
    state = site.registry().state("fake")
    assert state.state is State.INCOMPATIBLE
    assert all(phrase in state.reason for phrase in [*phrases, f"upgrade {upgrade}"])
    assert state.install == f"pip install --upgrade {upgrade}"


def test_no_hook_of_an_incompatible_plugin_runs(site, tmp_path):
    trace = tmp_path / "trace"
    source = site.plugin("fake").replace("PLUGIN_API = 1", "PLUGIN_API = 2")
    site.add("fake", source.replace("return Fake()", f"open({str(trace)!r}, 'w').close()"))
    assert site.registry().state("fake").state is State.INCOMPATIBLE
    assert not trace.exists()


def test_a_blocked_plugin_is_never_imported(site):
    module = site.add("fake")
    states, imported = site.run(STATES, TWINQUANT_DISABLE_PLUGINS=" other, fake ,,")
    reason = "TWINQUANT_DISABLE_PLUGINS names it; take it off that list to use it"
    assert states["fake"] == ["blocked", "twinquant-fake", "1.0", reason]
    assert module not in imported


def test_a_plugin_that_is_not_blocked_is_found_through_the_installed_distributions(site):
    module = site.add("fake")
    states, imported = site.run(STATES, TWINQUANT_DISABLE_PLUGINS="")
    assert states["fake"] == ["ok", "twinquant-fake", "1.0", ""]
    assert imported == [module]


def test_two_distributions_of_one_name_are_both_refused_and_both_named(site):
    modules = [site.add("fake", distribution=name, version=f"{i}.0") for i, name in enumerate(["alpha-q", "beta-q"])]
    registry = site.registry()
    state = registry.state("fake")
    assert state.state is State.DUPLICATE
    assert "alpha-q 0.0" in state.reason
    assert "beta-q 1.0" in state.reason
    assert not registry.frameworks
    assert not set(modules) & set(sys.modules)


@pytest.mark.parametrize("second", ["twinquant_fake", "Twinquant.Fake"])
def test_one_distribution_that_shows_twice_is_no_duplicate(site, second):
    site.add("fake")
    site.add("fake", distribution=second, info="egg-info", module="fake_plugin_twinquant_fake")
    assert site.registry().state("fake").state is State.OK


def test_two_names_for_one_module_do_not_take_each_other_down(site):
    site.add("fake", module="fake_plugin_shared", distribution="first")
    site.add("gake", site.plugin("fake"), module="fake_plugin_shared", distribution="second")
    registry = site.registry()
    assert registry.state("fake").state is State.OK
    assert registry.state("gake").state is State.BROKEN
    assert list(registry.frameworks) == ["fake"]


def test_the_order_of_installation_changes_nothing(site):
    for name in ("cat", "ant", "bee"):
        site.add(name)
    site.add("bad", "import a_module_that_is_not_there")

    def seen(registry):
        return list(registry.frameworks), [(s.name, s.state, s.distribution, s.reason) for s in registry.states]

    assert seen(site.registry()) == seen(site.registry(backwards=True))
    assert list(site.registry().frameworks) == ["ant", "bee", "cat"]


def test_a_host_may_register_a_framework_directly():
    registry = Registry()
    framework = HostFramework()
    registry.register(framework)
    assert registry.frameworks["host"] is framework
    assert registry.state("host").state is State.OK


def test_a_second_framework_of_one_name_is_refused():
    registry = Registry()
    registry.register(HostFramework())
    with pytest.raises(ArgumentError, match="'host'"):
        registry.register(HostFramework())


def test_every_state_is_listed_by_name(site):
    site.add("zebra")
    assert [state.name for state in site.registry().states] == ["caffe", "onnx", "torch", "zebra"]
