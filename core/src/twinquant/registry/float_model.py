"""What a framework tells calibration about a float model: its inputs, its tensors and its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy.typing as npt

__all__ = ["Array", "LayerWeight", "ModelInput", "RunBatch", "Sliceable", "Tap"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class ModelInput:
    """One input of a model.

    Attributes:
        name: its name.
        dtype: its element type under NumPy's name, such as "float32" or "int64".
        shape: the length of every axis, a name or None where any length is taken; None: not even the rank is known.
    """

    name: str
    dtype: str
    shape: tuple[int | str | None, ...] | None


@dataclass(frozen=True, slots=True)
class Tap:
    """A place in a model whose values calibration looks at.

    Attributes:
        layer: the layer's name.
        hidden: the hidden state that an RNN reads in each of its steps; False: the activation, what
            `LayerInfo.activation` means.
    """

    layer: str
    hidden: bool = False


RunBatch = Callable[[Mapping[str, Array]], Iterator[tuple[Tap, Sequence[Array]]]]
"""Runs a model on one batch, arrays by input name, and yields the values of one tap after the other.

The values of a tap are arrays of any float type, which together hold them all. The caller is done with them when it
asks for the next ones.
"""


class Sliceable(Protocol):
    """A weight that may be larger than memory: an array, or anything that reads what is sliced from it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of all axes."""

    def __getitem__(self, where: tuple[slice, ...], /) -> Any:
        """Return one block as an array of any float type."""


@dataclass(frozen=True, slots=True, eq=False)
class LayerWeight:
    """One weight of a layer.

    Attributes:
        values: any float type, rank 3: `(out, in / groups, rest)` or `(in, out / groups, rest)`; the groups follow each
            other along the first axis.
        out_axis: where the output channels are: 0 or 1.
        groups: number of groups of a convolution.
    """

    values: Sliceable
    out_axis: int = 0
    groups: int = 1
