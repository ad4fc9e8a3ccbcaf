"""What the plugin takes as a model: a module and the example inputs that it is exported with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["TorchModel"]


@dataclass(frozen=True, slots=True, eq=False)
class TorchModel:
    """A module with everything that its export needs; accepted wherever a model is.

    Attributes:
        module: the `torch.nn.Module`, in evaluation mode.
        example_inputs: one batch: a tensor, a tuple of the positional arguments of `forward`, or a dict of its keyword
            arguments.
        input_names: names of the exported inputs, in the order of the tensors; None: the names that `forward` uses.
        output_names: names of the exported outputs; None: the exporter's.
        dynamic_axes: which axes have any length, by the name of an input: `{"input": {0: "n"}}`, or `{"input": [0]}`.
            Names of outputs may be there, too, and give their axes names. None: every axis is as long as in the
            example.
        opset: the operator set of the exported model, 17 or newer; None: the exporter's choice.
    """

    module: Any
    example_inputs: Any
    input_names: Sequence[str] | None = None
    output_names: Sequence[str] | None = None
    dynamic_axes: Mapping[str, Mapping[int, str] | Sequence[int]] | None = None
    opset: int | None = None
