"""The frameworks that TwinQuant knows of, also where their plugins are absent; nothing is imported to tell."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

__all__ = ["CATALOG", "KnownFramework", "known_reader"]


@dataclass(frozen=True, slots=True)
class KnownFramework:
    """A framework with a plugin of our own.

    Attributes:
        name: the framework's name, which is also the extra of the `twinquant` distribution.
        distribution: the distribution that brings the plugin.
        suffixes: endings of its file names, in lower case.
        modules: top-level modules whose types are its graphs.
    """

    name: str
    distribution: str
    suffixes: tuple[str, ...]
    modules: tuple[str, ...]

    @property
    def install(self) -> str:
        """The command that installs the plugin."""
        return f'pip install "twinquant[{self.name}]"'


CATALOG: tuple[KnownFramework, ...] = (
    KnownFramework("caffe", "twinquant-caffe", (".prototxt", ".caffemodel"), ("caffe",)),
    KnownFramework("onnx", "twinquant-onnx", (".onnx",), ("onnx", "onnx_ir")),
    KnownFramework("torch", "twinquant-torch", (".pt", ".pth", ".pt2"), ("torch",)),
)
"""Every known framework, by name."""


def known_reader(source: Any) -> KnownFramework | None:
    """Return the known framework that the source most likely belongs to, by its type or its name; None if none does.

    The types of a source are told by the modules of its base classes, so a user's subclass of `torch.nn.Module` counts
    as torch's, and nothing is imported.
    """
    modules = {base.__module__.partition(".")[0] for base in type(source).__mro__}
    parts = source if isinstance(source, (tuple, list)) else (source,)
    names = [os.fsdecode(part).lower() for part in parts if isinstance(part, (str, bytes, os.PathLike))]
    for known in CATALOG:
        if modules.intersection(known.modules) or any(name.endswith(known.suffixes) for name in names):
            return known
    return None
