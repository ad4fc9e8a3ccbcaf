"""Running the device's recurrent operators in float: integers times their scales, on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from twinquant.errors import VerificationError
from twinquant.numerics import unpack_dequant_parameter, unpack_int4_along
from twinquant_onnx.graph import OnnxGraph, TensorStore
from twinquant_onnx.rnn import QUANT_DTYPES, RNN_RULES
from twinquant_onnx.run import Pipeline
from twinquant_onnx.verify.deploy_layers import DeployRnn
from twinquant_onnx.verify.rnn_tensors import split_scales
from twinquant_onnx.verify.semantics import Quantizer
from twinquant_onnx.verify.twin import Twin

__all__ = ["RnnSimulator"]

Array = npt.NDArray[Any]

_BITS = {number: bits for bits, number in QUANT_DTYPES.items()}


class RnnSimulator:
    """One recurrent operator of the deploy twin.

    Args:
        twin: the deploy twin.
        rnn: the layer.
        input_scales: how many of the dequantization parameters belong to the input's weight. None: as many as to the
            recurrence's, if that can be; their number alone does not always tell.

    Raises:
        VerificationError: its tensors or attributes do not fit each other.
    """

    def __init__(self, twin: Twin, rnn: DeployRnn, input_scales: int | None = None) -> None:
        self.rnn = rnn
        self._input_scales = input_scales
        self._twin = twin
        self._node = twin.node(rnn.index)
        required = [name for name in ("X", "initial_h", "initial_c") if name in rnn.inputs]
        if not set(required) <= set(self.read_names) or len(self._node.output) != RNN_RULES[rnn.op_type].outputs:
            raise VerificationError(f"layer {rnn.name!r}: not all of {required} and its outputs are connected")
        given = {a.name: helper.get_attribute_value(a) for a in self._node.attribute}
        bits = _BITS.get(given.get("quant_dtype", 0))
        try:
            if bits is None:
                raise VerificationError(
                    f"layer {rnn.name!r}: quant_dtype is {given.get('quant_dtype')!r}, expected 2 or 6"
                )
            self.quantizers = tuple(
                Quantizer(given[f"quant_scale_{name}"], int(given[f"quant_offset_{name}"]), bits) for name in ("x", "h")
            )
            self._attributes = {"hidden_size": given["hidden_size"]}
            if rnn.op_type == "GRU":
                self._attributes["linear_before_reset"] = given["linear_before_reset"]
                if given["clip"] > 0:
                    self._attributes["clip"] = given["clip"]
        except KeyError as error:
            raise VerificationError(f"layer {rnn.name!r} has no attribute {error}") from error

    @property
    def read_names(self) -> tuple[str, ...]:
        """What `compute` takes, in order: the names of the operator's connected inputs."""
        names = (name for name in ("X", "initial_h", "initial_c", "sequence_lens") if name in self.rnn.inputs)
        return tuple(name for name in names if self._tensor(name))

    @property
    def reads(self) -> tuple[str, ...]:
        """The tensors that belong to `read_names`."""
        return tuple(self._tensor(name) for name in self.read_names)

    def _tensor(self, name: str) -> str:
        slot = self.rnn.inputs[name]
        return str(self._node.input[slot]) if slot < len(self._node.input) else ""

    def compute(self, arrays: Mapping[str, Array]) -> list[Array]:
        """Quantize X and the hidden state, go back to real values and run the float operator.

        Args:
            arrays: by input name: X, initial_h, initial_c (LSTM), sequence_lens (if connected); float of any width.

        Returns:
            the operator's outputs, in the element type of X.
        """
        if set(arrays) != set(self.read_names):
            raise VerificationError(
                f"layer {self.rnn.name!r} reads {list(self.read_names)}, its counterpart {list(arrays)}"
            )
        real = {"sequence_lens": arrays["sequence_lens"]} if "sequence_lens" in arrays else {}
        for name, quantizer in zip(("X", "initial_h"), self.quantizers, strict=True):
            with np.errstate(all="ignore"):
                real[name] = quantizer(arrays[name]) * (np.float32(1.0) / np.float32(quantizer.reciprocal))
        if "initial_c" in arrays:
            real["initial_c"] = arrays["initial_c"].astype(np.float32)
        try:
            with np.errstate(all="ignore"):
                weights = self._weights(arrays["X"].shape[-1])
        except ValueError as error:
            raise VerificationError(f"layer {self.rnn.name!r}: its tensors do not fit each other: {error}") from error
        slots = [
            "X",
            "W",
            "R",
            "B" if "B" in weights else "",
            "sequence_lens" if "sequence_lens" in real else "",
            "initial_h",
        ]
        if "initial_c" in real:
            slots.append("initial_c")
        outputs = [f"output{number}" if name else "" for number, name in enumerate(self._node.output)]
        node = helper.make_node(self.rnn.op_type, slots, outputs, **self._attributes)
        model = onnx.ModelProto(ir_version=self._twin.graph.model.ir_version)
        model.opset_import.extend(self._twin.graph.model.opset_import)
        model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in weights.items())
        wanted = [name for name in outputs if name]
        graph = OnnxGraph(model, TensorStore())
        results = dict(Pipeline(graph, [node], wanted, inputs=real).run(real))
        return [results[name].astype(arrays["X"].dtype) for name in wanted]

    def _constant(self, name: str) -> Array | None:
        constant = self._twin.finder.find(self._tensor(name))
        return None if constant is None else self._twin.data(constant).array()

    def _weights(self, columns: int) -> dict[str, Array]:
        """Return W, R and B as real values."""
        w, r, parameter, bias = (self._constant(name) for name in ("W", "R", "parameter", "B"))
        if w is None or r is None or parameter is None or parameter.dtype != np.uint64 or w.ndim != 3 or r.ndim != 3:
            raise VerificationError(f"layer {self.rnn.name!r} has no constant weights or no dequantization parameter")
        w, r = (
            unpack_int4_along(integers, 2)
            if integers.dtype == np.int8 and 2 * integers.shape[2] == length
            else integers
            for integers, length in ((w, columns), (r, self._attributes["hidden_size"]))
        )
        combined, _, _ = unpack_dequant_parameter(parameter.reshape(-1))
        splits = [
            parts
            for count, *parts in split_scales(combined, w.shape[1], RNN_RULES[self.rnn.op_type].gates)
            if self._input_scales in (None, count)
        ]
        if not splits:
            raise VerificationError(f"layer {self.rnn.name!r}: {combined.size} scales do not fit {w.shape[1]} rows")
        weights: dict[str, Array] = {}
        for name, integers, scale, quantizer in zip(("W", "R"), (w, r), splits[0], self.quantizers, strict=True):
            per_row = scale * np.float32(quantizer.reciprocal)
            weights[name] = integers.astype(np.float32) * per_row[:, None]
        if bias is not None:
            weights["B"] = bias.astype(np.float32) * np.concatenate(splits[0])
        return weights
