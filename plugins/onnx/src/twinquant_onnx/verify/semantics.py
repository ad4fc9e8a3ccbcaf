"""What the deploy twin's operators compute, on arrays."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from twinquant.errors import VerificationError
from twinquant.numerics import quantize_activation, unpack_dequant_parameter, unpack_int4_along
from twinquant.verification import (
    RELATIVE_TOLERANCE,
    Accumulator,
    allowed_difference,
    convolve,
    convolve_transposed,
    multiply,
)
from twinquant_onnx.operators import ACTIVATION_BITS
from twinquant_onnx.run import Pipeline
from twinquant_onnx.verify.deploy_layers import DeployLayer
from twinquant_onnx.verify.geometry import convolution_window, read_groups, transposed_window
from twinquant_onnx.verify.twin import Twin

__all__ = ["LayerResult", "LayerSimulator", "Quantizer", "read_quantizer", "without_zero_value"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Quantizer:
    """What an AscendQuant does.

    Attributes:
        reciprocal: float32 value that the activation is multiplied by.
        offset: zero point.
        num_bits: 4, 8 or 16.
    """

    reciprocal: float
    offset: int
    num_bits: int

    def __call__(self, x: Array) -> Array:
        """Quantize; return the integers with the offset subtracted, as float32: exact, and 0 means real zero."""
        with np.errstate(all="ignore"):
            integers = quantize_activation(x, self.reciprocal, self.offset, self.num_bits)
        return np.asarray(np.subtract(integers, self.offset, dtype=np.float32))


def read_quantizer(node: onnx.NodeProto) -> Quantizer:
    """Read the attributes of an AscendQuant or AscendAntiQuant.

    Raises:
        VerificationError: one is missing or not of the kind known.
    """
    if len(node.input) != 1 or len(node.output) != 1:
        raise VerificationError(
            f"{node.op_type} {node.name!r} has {len(node.input)} inputs and {len(node.output)} outputs"
        )
    given = {attribute.name: attribute for attribute in node.attribute}
    absent = [name for name in ("scale", "offset", "dst_type") if name not in given]
    if absent:
        raise VerificationError(f"{node.op_type} {node.name!r} has no attribute {absent[0]!r}")
    bits = ACTIVATION_BITS.get(given["dst_type"].s)
    offset = given["offset"].f
    if bits is None or not np.isfinite(offset) or offset != int(offset):
        kind = given["dst_type"].s.decode(errors="replace")
        raise VerificationError(
            f"{node.op_type} {node.name!r} has dst_type {kind!r} and offset {offset}, which is no integer type"
        )
    return Quantizer(given["scale"].f, int(offset), bits)


def without_zero_value(twin: Twin, pad: onnx.NodeProto) -> onnx.NodeProto:
    """Return a Pad of quantized values for values without the offset.

    Padding with the offset is padding with 0 there, which is the default; the constant's element type would not fit.

    Raises:
        VerificationError: it pads with something else.
    """
    if len(pad.input) < 3 or not pad.input[2]:
        return pad
    constant = twin.finder.find(pad.input[2])
    if constant is None or np.any(twin.data(constant).array()):
        raise VerificationError(
            f"Pad {pad.name!r} pads quantized values with {pad.input[2]!r}, which is not a constant 0"
        )
    copy = onnx.NodeProto()
    copy.CopyFrom(pad)
    copy.input[2] = ""
    return copy


@dataclass(frozen=True, slots=True, eq=False)
class LayerResult:
    """What a layer computes.

    Attributes:
        accumulator: what is dequantized.
        product: float32: the accumulator times the scale.
        output: the same in the element type that AscendDequant makes.
        allowed: how far the fake-quant twin's product may be from `product`.
    """

    accumulator: Accumulator
    product: npt.NDArray[np.float32]
    output: Array
    allowed: Array


class LayerSimulator:
    """One layer of the deploy twin, from quantized input to dequantized output.

    Args:
        twin: the deploy twin.
        layer: the layer.
        keep_weight: keep the weight in memory between calls.
    """

    def __init__(self, twin: Twin, layer: DeployLayer, *, keep_weight: bool) -> None:
        self.layer = layer
        self._twin = twin
        self._node = twin.node(layer.index)
        self._keep = keep_weight
        self._weight: Array | None = None
        self._path = [without_zero_value(twin, twin.node(index)) for index in layer.path]

    @property
    def quantizer(self) -> Quantizer:
        """The AscendQuant in front of the layer."""
        return read_quantizer(self._twin.node(self.layer.quant))

    def follow_path(self, quantized: Array) -> Array:
        """Pass quantized values, offset subtracted, through the Pad between AscendQuant and layer, if there is one."""
        return self._path_pipeline(quantized) if self._path else quantized

    @cached_property
    def _path_pipeline(self) -> Callable[[Array], Array]:
        return _function_of(self._twin, self._path, self._path[0].input[0], self._node.input[0])

    @cached_property
    def _node_pipeline(self) -> Callable[[Array], Array]:
        return _function_of(self._twin, [self._node], self._node.input[0], self._node.output[0])

    def compute(self, x: Array) -> LayerResult:
        """Run the layer on quantized values, offset subtracted.

        Raises:
            VerificationError: shapes or attributes do not fit each other.
        """
        self._check_rank(x.ndim)
        try:
            accumulator, exact = _COMPUTE[self.layer.op_type](self, x)
        except ValueError as error:
            raise VerificationError(f"layer {self.layer.name!r} cannot be computed on {x.shape}: {error}") from error
        scale = self._scale(accumulator.total)
        with np.errstate(all="ignore"):
            allowed = allowed_difference(accumulator, scale)
            if not exact and accumulator.magnitude is not None:
                allowed = RELATIVE_TOLERANCE * accumulator.magnitude.astype(np.float64) * scale
            product = accumulator.total.astype(np.float32) * scale
            dequant = self._twin.node(self.layer.dequant)
            to_float16 = any(a.name == "dtype" and a.i == 1 for a in dequant.attribute)
            output = product.astype(np.float16) if to_float16 else product
        return LayerResult(accumulator, product, output, allowed)

    def _check_rank(self, rank: int) -> None:
        weight = self.layer.weight
        if self.layer.op_type in ("Conv", "ConvTranspose") and weight is not None:
            expected = (len(weight.stored_shape), len(weight.stored_shape))
        else:
            expected = {"Gemm": (2, 2), "MatMul": (1, 99)}.get(self.layer.op_type, (3, 99))
        if not expected[0] <= rank <= expected[1]:
            raise VerificationError(f"layer {self.layer.name!r} ({self.layer.op_type}) gets an input of rank {rank}")

    def _scale(self, total: Array) -> npt.NDArray[np.float32]:
        parameter = self._twin.data(self.layer.parameter).array()
        if parameter.dtype != np.uint64:
            raise VerificationError(
                f"layer {self.layer.name!r}: the dequantization parameter is {parameter.dtype}, not uint64"
            )
        scale, shift, offset = unpack_dequant_parameter(parameter.reshape(-1))
        if np.any(shift) or np.any(offset):
            raise VerificationError(
                f"layer {self.layer.name!r}: the dequantization parameter has a shift or a weight offset"
            )
        axis = total.ndim - 1 if self.layer.op_type in ("Gemm", "MatMul") else 1
        shape = [1] * total.ndim
        shape[axis] = scale.size
        if scale.size not in (1, total.shape[axis]):
            raise VerificationError(f"layer {self.layer.name!r}: {scale.size} scales for {total.shape[axis]} channels")
        return scale.reshape(shape)

    def _read_weight(self, axis: int, length: int) -> Array:
        """Read the weight as the layer sees it, with `length` along `axis`: pairs of 4-bit values are taken apart."""
        if self._weight is not None:
            return self._weight
        constant = self.layer.weight
        if constant is None:
            raise VerificationError(f"layer {self.layer.name!r} has no weight")
        weight = self._twin.data(constant).integers()
        if constant.transposed:
            weight = weight.T
        if weight.dtype == np.int8 and 2 * weight.shape[axis] == length:
            weight = unpack_int4_along(weight, axis)
        if self._keep:
            self._weight = weight
        return weight

    def _read_bias(self) -> Array | None:
        constant = self.layer.bias
        return None if constant is None else self._twin.data(constant).integers()

    def _convolve(self, x: Array) -> tuple[Accumulator, bool]:
        weight = self._read_weight(1, x.shape[1] // read_groups(self._node, x.shape[1]))
        window = convolution_window(self._node, x.shape[1], x.shape[2:], weight.shape[2:])
        return convolve(x, weight, self._read_bias(), window), True

    def _convolve_transposed(self, x: Array) -> tuple[Accumulator, bool]:
        weight = self._read_weight(0, x.shape[1])
        window = transposed_window(self._node, x.shape[1], x.shape[2:], weight.shape[2:])
        return convolve_transposed(x, weight, self._read_bias(), window), True

    def _multiply(self, x: Array) -> tuple[Accumulator, bool]:
        return multiply(x, self._read_weight(0, x.shape[-1]), self._read_bias()), True

    def _gemm(self, x: Array) -> tuple[Accumulator, bool]:
        given = {a.name: a for a in self._node.attribute}
        if any(name in given and given[name].i for name in ("transA", "transB")):
            raise VerificationError(f"layer {self.layer.name!r}: transA and transB must be 0 in a deploy twin")
        alpha, beta = (np.float64(given[name].f) if name in given else np.float64(1) for name in ("alpha", "beta"))
        weight, bias = self._read_weight(0, x.shape[-1]), self._read_bias()
        if alpha == 1 and (beta == 1 or bias is None):
            return multiply(x, weight, bias), True
        product = multiply(x, weight, None)
        total = alpha * product.total.astype(np.float64)
        magnitude = np.abs(alpha) * multiply(np.abs(x), np.abs(weight.astype(np.int16)), None).total.astype(np.float64)
        if bias is not None:
            total = total + beta * bias
            magnitude = magnitude + np.abs(beta * bias)
        return Accumulator(total, magnitude), False

    def _average(self, x: Array) -> tuple[Accumulator, bool]:
        mean, magnitude = self._node_pipeline(x), self._node_pipeline(np.abs(x))
        return Accumulator(mean, magnitude), False


def _function_of(twin: Twin, nodes: list[onnx.NodeProto], begin: str, end: str) -> Callable[[Array], Array]:
    """Return what some nodes compute in float, on ONNX Runtime."""
    pipeline = Pipeline(twin.graph, nodes, [end], inputs=[begin])
    return lambda x: dict(pipeline.run({begin: x}))[end]


_COMPUTE: dict[str, Callable[[LayerSimulator, Array], tuple[Accumulator, bool]]] = {
    "Conv": LayerSimulator._convolve,
    "ConvTranspose": LayerSimulator._convolve_transposed,
    "Gemm": LayerSimulator._gemm,
    "MatMul": LayerSimulator._multiply,
    "AveragePool": LayerSimulator._average,
}
"""How each operator is computed; the flag says whether float32 can be exact, which is not so for averages."""
