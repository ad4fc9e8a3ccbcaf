"""Collecting what disagrees, by the layer it belongs to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Findings"]


@dataclass(slots=True)
class Findings:
    """What disagrees between two twins so far.

    Attributes:
        general: what belongs to no layer.
        layers: what belongs to a layer, by its name.
        owners: the layer that a deploy twin's node belongs to, by the node's position.
        built_differently: layers, and None for the rest of the graph, whose wiring, attributes or shapes differ. Such
            parts are not run: nobody knows what they would do, one wrong length can ask for any amount of memory.
    """

    general: list[str] = field(default_factory=list)
    layers: dict[str, list[str]] = field(default_factory=dict)
    owners: dict[int, str] = field(default_factory=dict)
    built_differently: set[str | None] = field(default_factory=set)

    def add(self, problem: str | None, layer: str | None = None) -> None:
        """Note a problem of values, if it is one."""
        if problem:
            (self.general if layer is None else self.layers.setdefault(layer, [])).append(problem)

    def add_structural(self, problems: Iterable[str], layer: str | None = None) -> None:
        """Note problems of wiring, attributes or shapes."""
        for problem in problems:
            self.built_differently.add(layer)
            self.add(problem, layer)

    def add_at(self, node: int, problems: Iterable[str]) -> None:
        """Note problems of wiring, attributes or shapes of a node of the deploy twin."""
        self.add_structural(problems, self.owners.get(node))
