"""The manifest: what a record was made of, so that it can be made again."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import twinquant
from twinquant.calibration.digests import digest_batches, digest_file, digest_json
from twinquant.config import QuantConfig
from twinquant.data import DataOptions
from twinquant.registry import Framework, plugin_states

__all__ = ["FileDigest", "Manifest", "digest_model", "make_manifest", "package_versions"]

_REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class FileDigest:
    """A file's fingerprint.

    Attributes:
        name: the file's name, without its folder.
        size: in bytes.
        sha256: of its content.
    """

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a calibration depended on. Holds no time and no folder: the same input gives the same manifest.

    Attributes:
        framework: the framework's name.
        versions: of Python packages by name, TwinQuant among them.
        model: the files of the float model, the model file first.
        folded_layers: layers into which something was folded.
        data_sha256: of the batches that were used, in their order.
        batch_num: how many they were.
        config_sha256: of `config`.
        config: the whole configuration, with every default.
        options: how the data was cut and prepared.
        passes: how often the data was gone through.
        layers: how many layers were calibrated.
    """

    framework: str
    versions: Mapping[str, str]
    model: tuple[FileDigest, ...]
    folded_layers: tuple[str, ...]
    data_sha256: str
    batch_num: int
    config_sha256: str
    config: Mapping[str, Any]
    options: Mapping[str, Any]
    passes: int
    layers: int

    @property
    def text(self) -> str:
        """The manifest as JSON, as it is written to the file."""
        return json.dumps({"manifest_version": 1, **asdict(self)}, indent=2, ensure_ascii=False) + "\n"


def make_manifest(
    framework: Framework,
    model: Sequence[FileDigest],
    folded: Sequence[str],
    batches: Sequence[str],
    config: QuantConfig,
    options: DataOptions,
    *,
    passes: int,
    layers: int,
) -> Manifest:
    """Put a manifest together.

    Args:
        framework: the framework.
        model: the model's files.
        folded: layers into which something was folded.
        batches: the fingerprints of the batches, in their order.
        config: the configuration.
        options: how the data was cut and prepared.
        passes: how often the data was gone through.
        layers: how many layers were calibrated.
    """
    content = asdict(config)
    return Manifest(
        framework=framework.name,
        versions=package_versions(framework),
        model=tuple(model),
        folded_layers=tuple(folded),
        data_sha256=digest_batches(batches),
        batch_num=len(batches),
        config_sha256=digest_json(content),
        config=content,
        options=asdict(options),
        passes=passes,
        layers=layers,
    )


def digest_model(framework: Framework, source: Any, graph: Any) -> tuple[FileDigest, ...]:
    """Return the fingerprints of a model's files; a model in memory counts as the file that it would be written to."""
    files = framework.inputs(source, graph)
    if files:
        return tuple(_digest(path) for path in files)
    with tempfile.TemporaryDirectory(prefix="twinquant-") as folder:
        return tuple(_digest(path) for path in framework.write_float(graph, Path(folder), "model"))


def _digest(path: Path) -> FileDigest:
    return FileDigest(path.name, path.stat().st_size, digest_file(path))


def package_versions(framework: Framework) -> dict[str, str]:
    """Return the versions of TwinQuant, of the framework's plugin and of the packages that it needs."""
    plugin = next((state.distribution for state in plugin_states() if state.name == framework.name), "")
    versions = {"twinquant-core": twinquant.__version__}
    names = ["numpy", *([plugin] if plugin else [])]
    with suppress(metadata.PackageNotFoundError):
        lines = metadata.requires(plugin) if plugin else None
        names += [found[0] for line in lines or () if "extra ==" not in line and (found := _REQUIREMENT.match(line))]
    for name in sorted(set(names)):
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions
