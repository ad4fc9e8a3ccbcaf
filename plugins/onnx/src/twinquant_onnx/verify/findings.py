"""Collecting what disagrees, by the layer it belongs to."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Findings"]


@dataclass(slots=True)
class Findings:
    """What disagrees between two twins so far.

    Attributes:
        general: what belongs to no layer.
        layers: what belongs to a layer, by its name.
        owners: the layer that a deploy twin's node belongs to, by the node's position.
    """

    general: list[str] = field(default_factory=list)
    layers: dict[str, list[str]] = field(default_factory=dict)
    owners: dict[int, str] = field(default_factory=dict)

    def add(self, problem: str | None, layer: str | None = None) -> None:
        """Note a problem, if it is one."""
        if problem:
            (self.general if layer is None else self.layers.setdefault(layer, [])).append(problem)

    def add_at(self, node: int, problems: list[str]) -> None:
        """Note problems of a node of the deploy twin."""
        for problem in problems:
            self.add(problem, self.owners.get(node))
