"""The fake-quant twin's chains of standard operators that stand for AscendQuant."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from twinquant.numerics import integer_range
from twinquant_onnx.insert.activation import ROUNDING_MAGIC
from twinquant_onnx.verify.twin import Twin

__all__ = ["Chain", "read_chain"]


@dataclass(frozen=True, slots=True)
class Chain:
    """What one chain computes: `clip(rint(x * scale) + offset, low, high) - offset`.

    Attributes:
        source: the tensor that is quantized, in the model's own element type.
        widened: the same as float32: what the first Mul reads.
        output: the integers without the offset.
        nodes: positions of the chain's nodes and of their constants.
        scale: float32, the reciprocal of the quantization scale.
        offset: zero point.
        low: smallest integer.
        high: largest integer.
    """

    source: str
    widened: str
    output: str
    nodes: frozenset[int]
    scale: np.float32
    offset: float
    low: float
    high: float

    @property
    def num_bits(self) -> int | None:
        """How many bits the range belongs to: 4, 8 or 16, else None."""
        return next((bits for bits in (4, 8, 16) if integer_range(bits) == (self.low, self.high)), None)


_STEPS = ("Round", "Add", "Clip", "Sub")
_STEPS_BEFORE_OPSET_11 = ("Add", "Sub", "Add", "Clip", "Sub")


def read_chain(twin: Twin, first: int) -> Chain | str:
    """Read the chain that begins with the Mul at a position; a sentence says what is wrong with it."""
    mul = twin.node(first)
    if mul.op_type != "Mul" or len(mul.input) != 2:
        return f"node {mul.name!r} is no Mul of two tensors"
    nodes = [first]
    source = str(mul.input[0])
    before = twin.producer(source)
    if before is not None and twin.node(before).op_type == "Cast" and ".fakequant.cast" in twin.node(before).name:
        nodes.append(before)
        source = str(twin.node(before).input[0])
    walked = _walk(twin, first, _STEPS) or _walk(twin, first, _STEPS_BEFORE_OPSET_11)
    if walked is None:
        return f"the nodes behind {mul.name!r} are not Round, Add, Clip, Sub"
    *rounding, add, clip, sub = walked
    scale, offset, subtracted = (twin.scalar(twin.node(index).input[1]) for index in (first, add, sub))
    low, high = _limits(twin, twin.node(clip))
    if scale is None or offset is None or subtracted is None or low is None or high is None:
        return f"a constant of the chain behind {mul.name!r} is no float32 scalar"
    if offset != subtracted:
        return f"the chain behind {mul.name!r} adds offset {offset} and subtracts {subtracted}"
    magic = [twin.scalar(twin.node(i).input[1]) for i in rounding if twin.node(i).op_type != "Round"]
    if any(value != np.float32(ROUNDING_MAGIC) for value in magic):
        return f"the chain behind {mul.name!r} rounds with {magic}, expected twice {ROUNDING_MAGIC:.0f}"
    nodes += walked
    constants = (twin.finder.find(tensor) for index in (first, *walked) for tensor in twin.node(index).input[1:])
    nodes += [constant.node for constant in constants if constant is not None and constant.node is not None]
    output = str(twin.node(sub).output[0])
    return Chain(source, str(mul.input[0]), output, frozenset(nodes), scale, float(offset), float(low), float(high))


def _walk(twin: Twin, first: int, op_types: tuple[str, ...]) -> list[int] | None:
    """Follow a chain forward; every node of it feeds only the next."""
    walked: list[int] = []
    index = first
    for op_type in op_types:
        reader = twin.topology.sole_reader(twin.node(index).output[0])
        if reader is None or reader.slot != 0 or twin.node(reader.node).op_type != op_type:
            return None
        index = reader.node
        walked.append(index)
    return walked


def _limits(twin: Twin, clip: onnx.NodeProto) -> tuple[np.float32 | None, np.float32 | None]:
    if len(clip.input) == 3:
        return twin.scalar(clip.input[1]), twin.scalar(clip.input[2])
    given = {attribute.name: np.float32(attribute.f) for attribute in clip.attribute}
    return given.get("min"), given.get("max")
