"""Choosing the framework of a graph: the strongest claim wins, a tie is an error."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from twinquant.errors import (
    AmbiguousFrameworkError,
    ArgumentError,
    BrokenPluginError,
    IncompatiblePluginError,
    ModelFileError,
    NoFrameworkError,
    PluginError,
    TwinQuantError,
)
from twinquant.registry.catalog import CATALOG, known_reader
from twinquant.registry.framework import Framework, Match
from twinquant.registry.manager import PluginState, Registry, State, installed_registry

if TYPE_CHECKING:
    from twinquant.outputs.artifact import DualOutput
    from twinquant.plan import QuantPlan

__all__ = ["notify_saved", "plugin_states", "select_framework"]

_log = logging.getLogger(__name__)

_ERRORS: dict[State, type[PluginError]] = {
    State.BROKEN: BrokenPluginError,
    State.ABSENT: NoFrameworkError,
    State.INCOMPATIBLE: IncompatiblePluginError,
    State.BLOCKED: NoFrameworkError,
    State.DUPLICATE: AmbiguousFrameworkError,
}


def select_framework(source: Any, name: str | None = None, *, registry: Registry | None = None) -> Framework:
    """Return the framework that reads the source.

    Args:
        source: the graph as the user gave it: a path, a tuple of paths or an object.
        name: a framework's name, which then is taken without asking; None means the strongest claim.
        registry: the plugins to choose from; None means the installed ones.

    Raises:
        ArgumentError: there is no framework of this name.
        NoFrameworkError: nobody recognizes the source; says what to install when that is known.
        AmbiguousFrameworkError: two frameworks claim the source equally, or two distributions bring its plugin.
        BrokenPluginError: the plugin that is needed fails; its exception is the cause.
        IncompatiblePluginError: the plugin that is needed is for another version of the plugin interface.
        ModelFileError: nobody recognizes the path, and there is no such file.
    """
    plugins = installed_registry() if registry is None else registry
    if name is not None:
        return _named(plugins, name)
    claims, failures = _claims(plugins, source)
    strongest = max((claim for claim, _ in claims), default=Match.NO)
    winners = [framework for claim, framework in claims if claim is strongest]
    if strongest is Match.NO:
        raise _unclaimed(plugins, source, failures)
    if len(winners) > 1:
        named = " and ".join(_label(plugins, framework.name) for framework in winners)
        choice = " or ".join(f"framework={framework.name!r}" for framework in winners)
        raise AmbiguousFrameworkError(
            f"{_describe(source)} is claimed equally by {named} (by {strongest.name.lower()}); choose with {choice} "
            "(--framework on the command line)"
        )
    return winners[0]


def notify_saved(framework: str, plan: QuantPlan, output: DualOutput, *, registry: Registry | None = None) -> None:
    """Tell every plugin that observes saves about a finished one; exceptions of observers are logged, never raised.

    Args:
        framework: name of the framework that wrote the twins.
        plan: what was inserted where.
        output: the files.
        registry: the plugins to tell; None means the installed ones.
    """
    (installed_registry() if registry is None else registry).notify_saved(framework, plan, output)


def plugin_states() -> Sequence[PluginState]:
    """Return every plugin that is installed or known of, sorted by name: ok, or why not and what to do."""
    return installed_registry().states


def _named(registry: Registry, name: str) -> Framework:
    if name in registry.frameworks:
        return registry.frameworks[name]
    state = registry.state(name)
    if state is not None:
        raise _unusable(state, f"framework={name!r}")
    names = [known.name for known in registry.states]
    close = get_close_matches(str(name), names, n=1)
    known = f"did you mean {close[0]!r}? Known are" if close else "known are"
    raise ArgumentError(f"there is no framework named {name!r}; {known}: {', '.join(names)}")


def _claims(registry: Registry, source: Any) -> tuple[list[tuple[Match, Framework]], dict[str, Exception]]:
    """Ask every framework; those that raise count as broken for this source."""
    answers = {name: _ask(framework, source) for name, framework in registry.frameworks.items()}
    claims = [(answer, registry.frameworks[name]) for name, answer in answers.items() if isinstance(answer, Match)]
    failures = {name: answer for name, answer in answers.items() if isinstance(answer, Exception)}
    return claims, failures


def _ask(framework: Framework, source: Any) -> Match | Exception:
    try:
        return Match(framework.recognize(source))
    except Exception as error:  # noqa: BLE001  plugin boundary: another framework may well claim the source
        _log.warning("the %s plugin failed to look at %s: %r", framework.name, _describe(source), error)
        return error


def _unclaimed(registry: Registry, source: Any, failures: dict[str, Exception]) -> TwinQuantError:
    """Say why nobody claims the source: an absent, unusable or failing plugin, a missing file, an unknown format."""
    known = known_reader(source)
    state = registry.state(known.name) if known else None
    if state is not None and state.state is not State.OK:
        return _unusable(state, _describe(source))
    if failures:
        name, error = next(iter(failures.items()))
        broken = BrokenPluginError(
            f"nobody recognizes {_describe(source)}, and {_label(registry, name)} failed to look at it: "
            f"{type(error).__name__}: {error}"
        )
        broken.__cause__ = error
        return broken
    missing = _missing_file(source)
    if missing is not None:
        return ModelFileError(f"the file {missing!r} does not exist; check the path of the graph")
    suffixes = {known.name: f" ({', '.join(known.suffixes)})" for known in CATALOG}
    readers = ", ".join(name + suffixes.get(name, "") for name in registry.frameworks) or "none"
    unusable = [
        f"{plugin.name} ({plugin.state.value}: {plugin.reason})"
        for plugin in registry.states
        if plugin.state not in (State.OK, State.ABSENT)
    ]
    others = f"; not usable: {', '.join(unusable)}" if unusable else ""
    return NoFrameworkError(
        f"no plugin recognizes {_describe(source)}; installed: {readers}{others}. "
        "Convert the graph to one of these formats, or name its framework (framework=... or --framework)"
    )


def _unusable(state: PluginState, wanted: str) -> PluginError:
    """Turn the state of the plugin that is needed into the error that the user sees."""
    label = f"{state.name} plugin" + (f" ({state.distribution} {state.version})" if state.version else "")
    command = f"; run: {state.install}" if state.install else ""
    error = _ERRORS[state.state](f"{wanted} needs the {label}, which is {state.state.value}: {state.reason}{command}")
    error.__cause__ = state.cause
    return error


def _label(registry: Registry, name: str) -> str:
    state = registry.state(name)
    return f"the {name} plugin" + (f" ({state.distribution} {state.version})" if state and state.version else "")


def _describe(source: Any) -> str:
    """Name the source in a message: a path as it was given, any other object by its type."""
    if isinstance(source, (str, os.PathLike)):
        return repr(os.fspath(source)) + (" (a folder)" if os.path.isdir(source) else "")  # noqa: PTH112  Path.is_dir may raise
    if isinstance(source, (tuple, list)) and source and all(isinstance(part, (str, os.PathLike)) for part in source):
        return f"({', '.join(repr(os.fspath(part)) for part in source)})"
    return f"an object of type {type(source).__module__}.{type(source).__qualname__}"


def _missing_file(source: Any) -> str | None:
    """Return the path if the source is one and nothing is there."""
    if not isinstance(source, (str, os.PathLike)):
        return None
    path = os.fspath(source)
    return None if os.path.exists(path) else str(path)  # noqa: PTH110  Path.exists raises where a name is too long
