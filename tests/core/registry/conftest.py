"""Distributions that exist only in a temporary folder: dist-info, entry points and modules, but no installer."""

import json
import os
import subprocess
import sys
from importlib.metadata import distributions

import pytest

from twinquant.registry import ENTRY_POINT_GROUP, load_registry

PLUGIN = """
from twinquant.registry import Framework, Match, hookimpl

PLUGIN_API = 1

class Fake(Framework):
    name = "{name}"
    def recognize(self, source): return Match.{match} if source == "{claims}" else Match.NO
    def load(self, source): return source
    def layers(self, graph): return ()
    def insert(self, graph, plan, flavor): return graph
    def write(self, graph, folder, prefix, flavor): return ()

@hookimpl
def twinquant_framework():
    return Fake()
"""


class Site:
    """A folder on sys.path that distributions can be put into."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()

    def plugin(self, name, *, match="CONTENT", claims="net.fake"):
        """Return the source of a plugin module that works."""
        return PLUGIN.format(name=name, match=match, claims=claims)

    def add(self, name, source=None, *, distribution=None, version="1.0", module=None, info="dist-info"):
        """Put one distribution with one plugin module into the folder; without a source, one that works."""
        distribution = distribution or f"twinquant-{name}"
        module = module or f"fake_plugin_{distribution.replace('-', '_').lower()}"
        folder = self.folder / f"{distribution.replace('-', '_')}-{version}.{info}"
        folder.mkdir()
        metadata = "METADATA" if info == "dist-info" else "PKG-INFO"
        (folder / metadata).write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        (folder / "entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\n{name} = {module}\n")
        (self.folder / f"{module}.py").write_text(self.plugin(name) if source is None else source)
        return module

    def registry(self, *, disabled=frozenset(), backwards=False):
        """Discover this folder's plugins, and no others, in this process."""
        found = [
            entry_point
            for distribution in distributions(path=[str(self.folder)])
            for entry_point in distribution.entry_points
            if entry_point.group == ENTRY_POINT_GROUP
        ]
        found.sort(key=lambda entry_point: (entry_point.name, entry_point.dist.name), reverse=backwards)
        return load_registry(found, disabled=frozenset(disabled))

    def run(self, code, **environment):
        """Run code in a new process that sees this folder too; return what it prints as JSON."""
        env = {**os.environ, "PYTHONPATH": str(self.folder), **environment}
        result = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """An empty site; its modules are forgotten afterwards."""
    site = Site(tmp_path / "site")
    monkeypatch.syspath_prepend(site.folder)
    yield site
    for name in [name for name in sys.modules if name.startswith("fake_plugin_")]:
        del sys.modules[name]
