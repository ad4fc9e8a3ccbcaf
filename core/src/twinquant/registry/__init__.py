"""PLUGINS: the contract, finding the installed ones, and choosing the one that reads a graph."""

from twinquant.registry.dispatch import notify_saved, plugin_states, select_framework
from twinquant.registry.float_model import LayerWeight, ModelInput, RunBatch, Tap
from twinquant.registry.framework import Capability, Framework, Match
from twinquant.registry.hookspecs import ENTRY_POINT_GROUP, PLUGIN_API, hookimpl
from twinquant.registry.manager import DISABLE_VARIABLE, PluginState, Registry, State, installed_registry, load_registry

__all__ = [
    "DISABLE_VARIABLE",
    "ENTRY_POINT_GROUP",
    "PLUGIN_API",
    "Capability",
    "Framework",
    "LayerWeight",
    "Match",
    "ModelInput",
    "PluginState",
    "Registry",
    "RunBatch",
    "State",
    "Tap",
    "hookimpl",
    "installed_registry",
    "load_registry",
    "notify_saved",
    "plugin_states",
    "select_framework",
]
