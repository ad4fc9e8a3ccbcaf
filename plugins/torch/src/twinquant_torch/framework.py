"""PyTorch, as the core uses it: this version tells torch models from everything else, and says what to do with them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from twinquant.errors import ModelFileError, UnsupportedModelError
from twinquant.outputs.artifact import Flavor
from twinquant.plan import LayerInfo, QuantPlan
from twinquant.registry import Framework, Match

__all__ = ["TorchFramework"]

_SUFFIXES = frozenset({".pt", ".pth", ".pt2"})
_TYPES = frozenset({"Module", "ExportedProgram"})


class TorchFramework(Framework):
    """Recognizes torch models: a `torch.nn.Module`, a `torch.export.ExportedProgram`, or a file that holds one."""

    name = "torch"

    def recognize(self, source: Any) -> Match:
        """Claim torch's model types by type, and .pt, .pth and .pt2 files by name.

        Types are told by the modules of their base classes: whoever holds such an object has imported torch already,
        and nobody else needs to.
        """
        for base in type(source).__mro__:
            if base.__module__.partition(".")[0] == "torch" and base.__name__ in _TYPES:
                return Match.TYPE
        if isinstance(source, (str, os.PathLike)) and Path(source).suffix.lower() in _SUFFIXES:
            return Match.NAME
        return Match.NO

    def load(self, source: Any) -> NoReturn:
        """Refuse every model: this version recognizes torch models, and does not quantize them.

        Raises:
            ModelFileError: the file does not exist.
            UnsupportedModelError: the model is there.
        """
        if isinstance(source, (str, os.PathLike)) and not Path(source).exists():
            raise ModelFileError(f"the torch file {os.fspath(source)!r} does not exist; check its path")
        self._refuse()

    def layers(self, graph: Any) -> Sequence[LayerInfo]:
        """Refuse, as `load` does.

        Raises:
            UnsupportedModelError: always.
        """
        self._refuse()

    def insert(self, graph: Any, plan: QuantPlan, flavor: Flavor) -> NoReturn:
        """Refuse, as `load` does.

        Raises:
            UnsupportedModelError: always.
        """
        self._refuse()

    def write(self, graph: Any, folder: Path, prefix: str, flavor: Flavor) -> Sequence[Path]:
        """Refuse, as `load` does.

        Raises:
            UnsupportedModelError: always.
        """
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise UnsupportedModelError(
            "this is a torch model, and this version of twinquant-torch only recognizes those: it cannot quantize them "
            "yet. Export it with torch.onnx.export(model, inputs, 'model.onnx') and save 'model.onnx' with the onnx "
            'plugin (pip install "twinquant[onnx]")'
        )
