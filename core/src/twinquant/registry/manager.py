"""Finding plugins: every installed one ends as a framework or as a state that says why not."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pluggy

from twinquant.errors import ArgumentError
from twinquant.registry import hookspecs
from twinquant.registry.catalog import CATALOG
from twinquant.registry.framework import Framework
from twinquant.registry.hookspecs import ENTRY_POINT_GROUP, PLUGIN_API

if TYPE_CHECKING:
    from twinquant.outputs.artifact import DualOutput
    from twinquant.plan import QuantPlan

__all__ = ["DISABLE_VARIABLE", "PluginState", "Registry", "State", "installed_registry", "load_registry"]

DISABLE_VARIABLE = "TWINQUANT_DISABLE_PLUGINS"
"""Environment variable with the names of plugins that are never imported, separated by commas."""

_log = logging.getLogger(__name__)


class State(str, Enum):
    """What became of a plugin."""

    OK = "ok"
    BROKEN = "broken"
    """It fails to import or to register."""
    ABSENT = "absent"
    """TwinQuant knows of it, but it is not installed."""
    INCOMPATIBLE = "incompatible"
    """It was written for another version of the plugin interface."""
    BLOCKED = "blocked"
    """The user switched it off."""
    DUPLICATE = "duplicate"
    """Two distributions bring it; neither is used."""


@dataclass(frozen=True, slots=True)
class PluginState:
    """One plugin as `twinquant plugins` lists it.

    Attributes:
        name: the framework's name.
        state: what became of it.
        distribution: the distribution that brings it, or that would; "" where there is none.
        version: version of that distribution; "" where it is not installed.
        reason: why it is not ok, as the end of a sentence; "" if it is.
        install: the command that installs or repairs it; "" where no command does.
        cause: the plugin's own exception, if it raised one.
    """

    name: str
    state: State
    distribution: str = ""
    version: str = ""
    reason: str = ""
    install: str = ""
    cause: BaseException | None = None


class Registry:
    """A set of plugins. Most callers want the installed ones: `installed_registry()`."""

    def __init__(self) -> None:
        self._hooks = pluggy.PluginManager("twinquant")
        self._hooks.add_hookspecs(hookspecs)
        self._frameworks: dict[str, Framework] = {}
        self._states = {
            known.name: PluginState(
                known.name, State.ABSENT, known.distribution, reason="it is not installed", install=known.install
            )
            for known in CATALOG
        }

    @property
    def frameworks(self) -> Mapping[str, Framework]:
        """The working frameworks by name, sorted."""
        return MappingProxyType(dict(sorted(self._frameworks.items())))

    @property
    def states(self) -> Sequence[PluginState]:
        """All plugins that are installed or known of, sorted by name."""
        return tuple(self._states[name] for name in sorted(self._states))

    def state(self, name: str) -> PluginState | None:
        """Return what became of the plugin of this name; None if there is no such plugin."""
        return self._states.get(name)

    def register(self, framework: Framework) -> None:
        """Add a framework that no entry point brings, for hosts and tests.

        Raises:
            ArgumentError: a framework of this name is there already.
        """
        if framework.name in self._frameworks:
            raise ArgumentError(f"a framework named {framework.name!r} is registered already; names are unique")
        self._frameworks[framework.name] = framework
        self._states[framework.name] = PluginState(framework.name, State.OK)

    def load(self, name: str, providers: Sequence[EntryPoint], *, blocked: bool = False) -> None:
        """Add the plugin of one name; whatever is wrong with it ends in its state, never in an exception.

        Args:
            name: the plugin's name.
            providers: the entry points of this name, one per distribution; more than one is refused.
            blocked: the plugin is listed as switched off, and not imported.
        """
        if blocked:
            reason = f"{DISABLE_VARIABLE} names it; take it off that list to use it"
            self._states[name] = _state(providers[0], State.BLOCKED, reason, install="")
        elif len(providers) > 1:
            both = " and ".join(" ".join(_distribution(provider)) for provider in providers)
            reason = f"{both} both bring it: uninstall one of them"
            self._states[name] = _state(providers[0], State.DUPLICATE, reason, install="")
        else:
            self._states[name] = self._load_one(providers[0])

    def notify_saved(self, framework: str, plan: QuantPlan, output: DualOutput) -> None:
        """Tell every observer about a finished save; an observer that raises is logged, and the others still hear."""
        for _, plugin in self._hooks.list_name_plugin():
            self._tell(plugin, framework, plan, output)

    def _load_one(self, entry_point: EntryPoint) -> PluginState:
        try:
            plugin = entry_point.load()
            mismatch = _api_mismatch(entry_point, plugin)
            if mismatch:
                return _state(entry_point, State.INCOMPATIBLE, mismatch[0], install=mismatch[1])
            self._frameworks[entry_point.name] = self._register(entry_point.name, plugin)
        except (Exception, SystemExit) as error:  # noqa: BLE001  plugin boundary: others must not go down with this one
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            return _state(entry_point, State.BROKEN, reason, cause=error)
        return _state(entry_point, State.OK, "", install="")

    def _register(self, name: str, plugin: Any) -> Framework:
        """Register one plugin with pluggy, which validates its hooks, and ask it for its framework."""
        self._hooks.register(plugin, name=name)
        try:
            self._hooks.check_pending()
            answers = self._hook_of(plugin, "twinquant_framework")()
            return _checked_framework(name, answers)
        except (Exception, SystemExit):
            self._hooks.unregister(plugin)
            raise

    def _tell(self, plugin: Any, framework: str, plan: QuantPlan, output: DualOutput) -> None:
        try:
            self._hook_of(plugin, "twinquant_saved")(framework=framework, plan=plan, output=output)
        except Exception:  # noqa: BLE001  plugin boundary: the save is done and must not fail for an observer
            name = self._hooks.get_name(plugin)
            _log.exception("the twinquant_saved hook of the %s plugin failed; the saved files are complete", name)

    def _hook_of(self, plugin: Any, hook: str) -> pluggy.HookCaller:
        """Return the hook as this plugin alone implements it."""
        others = [other for other in self._hooks.get_plugins() if other is not plugin]
        return self._hooks.subset_hook_caller(hook, others)


def load_registry(providers: Iterable[EntryPoint] | None = None, *, disabled: frozenset[str] = frozenset()) -> Registry:
    """Discover plugins, sorted by name: neither installation order nor a broken plugin changes what the others do.

    Args:
        providers: the entry points to look at; None means those of all installed distributions.
        disabled: names of plugins that are not imported.
    """
    found: dict[str, dict[str, EntryPoint]] = {}
    for provider in entry_points(group=ENTRY_POINT_GROUP) if providers is None else providers:
        # One distribution may show twice on sys.path, as an editable install and its egg-info: the first one counts.
        distribution = re.sub(r"[-_.]+", "-", _distribution(provider)[0]).lower()
        found.setdefault(provider.name, {}).setdefault(distribution, provider)
    registry = Registry()
    for name, by_distribution in sorted(found.items()):
        registry.load(name, [by_distribution[key] for key in sorted(by_distribution)], blocked=name in disabled)
    return registry


def installed_registry() -> Registry:
    """Return the installed plugins, discovered once per process and value of TWINQUANT_DISABLE_PLUGINS."""
    return _installed_without(os.environ.get(DISABLE_VARIABLE, ""))


@lru_cache(maxsize=8)
def _installed_without(disabled: str) -> Registry:
    return load_registry(disabled=frozenset(name.strip() for name in disabled.split(",") if name.strip()))


def _checked_framework(name: str, answers: Sequence[Any]) -> Framework:
    """Return the one framework among a plugin's answers to the registration hook."""
    if len(answers) != 1 or not isinstance(answers[0], Framework):
        given = repr(answers[0]) if answers else "nothing"
        raise TypeError(
            f"its hook twinquant_framework must return one instance of twinquant.registry.Framework, got {given}"
        )
    framework = answers[0]
    if framework.name != name:
        raise ValueError(f"its entry point is named {name!r}, its framework {framework.name!r}; they must be equal")
    return framework


def _api_mismatch(entry_point: EntryPoint, plugin: Any) -> tuple[str, str] | None:
    """Return why the plugin does not fit this version of the interface, and the command that helps."""
    version = getattr(plugin, "PLUGIN_API", None)
    if version == PLUGIN_API:
        return None
    distribution = _distribution(entry_point)[0]
    newer = isinstance(version, int) and version > PLUGIN_API
    outdated = "twinquant-core" if newer else distribution
    written = "names no plugin interface (PLUGIN_API)" if version is None else f"is for plugin interface {version!r}"
    reason = f"it {written}, and this twinquant-core offers {PLUGIN_API}: upgrade {outdated}"
    return reason, f"pip install --upgrade {outdated}"


def _distribution(entry_point: EntryPoint) -> tuple[str, str]:
    """Return name and version of the distribution behind an entry point."""
    if entry_point.dist is None:
        return "an unknown distribution", ""
    return str(entry_point.dist.name), str(entry_point.dist.version)


def _state(
    entry_point: EntryPoint,
    state: State,
    reason: str,
    *,
    install: str | None = None,
    cause: BaseException | None = None,
) -> PluginState:
    """Describe an installed plugin; `install=None` means the command that repairs it."""
    distribution, version = _distribution(entry_point)
    if install is None:
        known = next((known.install for known in CATALOG if known.distribution == distribution), None)
        install = known or f"pip install --force-reinstall {distribution}"
    return PluginState(entry_point.name, state, distribution, version, reason, install, cause)
