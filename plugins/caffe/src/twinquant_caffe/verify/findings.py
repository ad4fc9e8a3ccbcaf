"""What a verification finds before anything is run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Findings"]


@dataclass
class Findings:
    """What disagrees, collected while two twins are compared.

    Attributes:
        layers: sentences by the name of the quantized layer.
        general: sentences about everything else.
        wired_differently: the nets compute different things, so that running them would tell nothing.
    """

    layers: dict[str, list[str]] = field(default_factory=dict)
    general: list[str] = field(default_factory=list)
    wired_differently: bool = False

    def add(self, problem: str | None, layer: str | None = None) -> None:
        """Note a sentence, about a quantized layer or about the nets; None is nothing."""
        if problem is not None:
            (self.general if layer is None else self.layers.setdefault(layer, [])).append(problem)

    def add_wiring(self, problems: Iterable[str]) -> None:
        """Note sentences about how the nets are built."""
        for problem in problems:
            self.general.append(problem)
            self.wired_differently = True
