"""Running a deploy twin as a whole on the CPU: quantized layers on exact integers, all else on ONNX Runtime."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from twinquant.errors import VerificationError
from twinquant_onnx.load import load_model
from twinquant_onnx.run import ArrayStep, Pipeline
from twinquant_onnx.verify.deploy_layers import find_layers, find_rnns
from twinquant_onnx.verify.rnn_simulator import RnnSimulator
from twinquant_onnx.verify.semantics import LayerSimulator, read_quantizer, without_zero_value
from twinquant_onnx.verify.twin import Twin, read_twin

__all__ = ["DeploySimulator"]

Array = npt.NDArray[Any]

_KEPT_WEIGHTS = 64 << 20
"""Quantized weights stay in memory between calls if they are no larger than this together."""


class DeploySimulator:
    """A deploy twin, ready to run on one input after another.

    Args:
        deploy: the deploy model's file, or the loaded twin.
        taps: more tensors to compute than the graph's outputs.
        input_scales: how many of a recurrent layer's dequantization parameters are the input's, by its position, where
            that is known; see `RnnSimulator`.

    Raises:
        ModelFileError: the file cannot be read.
        VerificationError: the model's quantized layers cannot be understood.
    """

    def __init__(
        self, deploy: Path | Twin, taps: Iterable[str] = (), input_scales: Mapping[int, int] | None = None
    ) -> None:
        self.twin = deploy if isinstance(deploy, Twin) else read_twin(load_model(deploy))
        layers, problems = find_layers(self.twin)
        if problems:
            raise VerificationError(f"the deploy twin cannot be simulated: {problems[0]}")
        sizes = [prod(layer.weight.stored_shape) for layer in layers if layer.weight is not None]
        keep = sum(sizes) <= _KEPT_WEIGHTS
        self.layers = {layer.index: LayerSimulator(self.twin, layer, keep_weight=keep) for layer in layers}
        known = input_scales or {}
        self.rnns = {r.index: RnnSimulator(self.twin, r, known.get(r.index)) for r in find_rnns(self.twin)}
        self._outputs = tuple(value.name for value in self.twin.graph.model.graph.output)
        self._pipeline = Pipeline(self.twin.graph, self._work(), (*self._outputs, *taps))

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Run the model and return its outputs by name.

        Args:
            feeds: an array for every input of the model.

        Raises:
            VerificationError: a part of the model does not run on this input.
        """
        wanted = set(self._outputs)
        return {name: array for name, array in self.stream(feeds) if name in wanted}

    def stream(self, feeds: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
        """Run the model and yield outputs and tapped tensors as soon as they are known."""
        return self._pipeline.run(feeds)

    def _work(self) -> list[onnx.NodeProto | ArrayStep]:
        at_dequant = {simulator.layer.dequant: simulator for simulator in self.layers.values()}
        replaced = {
            i for s in self.layers.values() for i in (s.layer.index, s.layer.add, s.layer.dequant) if i is not None
        }
        padded = {index for simulator in self.layers.values() for index in simulator.layer.path}
        work: list[onnx.NodeProto | ArrayStep] = []
        for index, node in enumerate(self.twin.graph.model.graph.node):
            if index in at_dequant:
                work.append(self._layer_step(at_dequant[index]))
            elif index in self.rnns:
                work.append(self._rnn_step(self.rnns[index]))
            elif index in padded:
                work.append(without_zero_value(self.twin, node))
            elif node.op_type == "AscendQuant":
                work.append(_quant_step(node))
            elif node.op_type == "AscendAntiQuant":
                work.append(_anti_quant_step(node))
            elif index not in replaced:
                work.append(node)
        return work

    def _layer_step(self, simulator: LayerSimulator) -> ArrayStep:
        layer = simulator.layer
        reads = (self.twin.node(layer.index).input[0],)
        return ArrayStep(reads, (self.twin.node(layer.dequant).output[0],), lambda x: [simulator.compute(x[0]).output])

    def _rnn_step(self, simulator: RnnSimulator) -> ArrayStep:
        names = simulator.read_names
        outputs = tuple(name for name in self.twin.node(simulator.rnn.index).output if name)
        return ArrayStep(simulator.reads, outputs, lambda x: simulator.compute(dict(zip(names, x, strict=True))))


def _quant_step(node: onnx.NodeProto) -> ArrayStep:
    quantizer = read_quantizer(node)
    return ArrayStep((node.input[0],), (node.output[0],), lambda x: [quantizer(x[0])])


def _anti_quant_step(node: onnx.NodeProto) -> ArrayStep:
    factor = np.float32(read_quantizer(node).reciprocal)

    def go_back(x: Sequence[Array]) -> list[Array]:
        return [x[0] * factor]

    return ArrayStep((node.input[0],), (node.output[0],), go_back)
