"""What a verification found."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["LayerVerdict", "VerifyReport"]


@dataclass(frozen=True, slots=True)
class LayerVerdict:
    """What was found about one layer, or about one output (`op_type` is then "output").

    Attributes:
        name: the layer's name.
        op_type: the framework's word for it.
        agree: nothing disagrees.
        problems: what disagrees, one sentence each; empty when all agrees.
        max_difference: largest absolute difference of the isolated layer's output; None where it was not run.
        tolerance: largest difference allowed at the place of `max_difference`; 0 where equality is demanded.
        free_running: largest absolute difference at this layer when both twins run freely, each on its own
            intermediate results; None where it was not run.
        notes: what a user should know although nothing disagrees, such as an accumulator beyond int32.
        mode: "integer" for layers simulated on integers; "float" for layers (RNN) compared statically and run in float.
    """

    name: str
    op_type: str
    agree: bool
    problems: tuple[str, ...] = ()
    max_difference: float | None = None
    tolerance: float | None = None
    free_running: float | None = None
    mode: str = "integer"
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """Whether two twins agree, and where they do not.

    Attributes:
        layers: one verdict per quantized layer, in graph order.
        outputs: one verdict per output of the graph: the free-running difference.
        problems: what disagrees outside of any layer: tensors or nodes that only one twin has, different interfaces.
    """

    layers: tuple[LayerVerdict, ...]
    outputs: tuple[LayerVerdict, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def agree(self) -> bool:
        """Whether the twins hold the same integers everywhere and compute the same."""
        return not self.problems and all(layer.agree for layer in self.layers)
