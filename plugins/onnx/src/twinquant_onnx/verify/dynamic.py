"""The dynamic step: every layer on its own, on what the fake-quant twin feeds it, and both twins running freely."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from twinquant.errors import VerificationError
from twinquant.verification import (
    Judgement,
    LayerVerdict,
    judge_integers,
    judge_values,
    largest_difference,
    overflow_note,
)
from twinquant_onnx.run import Pipeline
from twinquant_onnx.verify.correspondence import Pairing
from twinquant_onnx.verify.deploy_layers import DeployLayer
from twinquant_onnx.verify.rnn import RnnPair
from twinquant_onnx.verify.rnn_simulator import RnnSimulator
from twinquant_onnx.verify.semantics import LayerSimulator
from twinquant_onnx.verify.simulator import DeploySimulator

__all__ = ["judge_on_data"]

Array = npt.NDArray[Any]

_RNN_TOLERANCE = 1e-4
"""Allowed difference of a recurrent layer's outputs, relative to max(1, |output|): float arithmetic over many steps."""


class _Stream:
    """Tensors by name from an iterator that yields them in its own order; each is dropped after its last use."""

    def __init__(self, values: Iterator[tuple[str, Array]], uses: Counter[str]) -> None:
        self._values = values
        self._left = uses
        self._pending: dict[str, Array] = {}

    def take(self, name: str) -> Array:
        while name not in self._pending:
            try:
                made, array = next(self._values)
            except StopIteration:
                raise VerificationError(f"tensor {name!r} is of a type that cannot be compared here") from None
            if self._left[made]:
                self._pending[made] = array
        self._left[name] -= 1
        return self._pending[name] if self._left[name] else self._pending.pop(name)


@dataclass(frozen=True, slots=True)
class _Task:
    """One layer that both twins have.

    Attributes:
        index: position in the deploy twin, for the order.
        layer: the layer.
        taps: tensors of the fake-quant twin that it is judged by.
        free: the tensors that are compared in free running: in the deploy and in the fake-quant twin.
    """

    index: int
    layer: DeployLayer | RnnPair
    taps: tuple[str, ...]
    free: tuple[str, str]


def judge_on_data(pairing: Pairing, feeds: Mapping[str, Array]) -> tuple[dict[str, LayerVerdict], list[LayerVerdict]]:
    """Run both twins on an input and judge every layer.

    Returns:
        a verdict for every layer that both twins have, by name, and one for every output of the graph.

    Raises:
        VerificationError: the fake-quant twin does not run.
    """
    tasks = sorted(_tasks(pairing), key=lambda task: task.index)
    outputs = [value.name for value in pairing.fake.graph.model.graph.output]
    used = Counter(name for task in tasks for name in (*task.taps, task.free[1]))
    used.update(outputs)
    main = pairing.fake.graph.model.graph
    reference = _Stream(Pipeline(pairing.fake.graph, list(main.node), used).run(feeds), used)
    free_running = _FreeRun(pairing, feeds, Counter([*(task.free[0] for task in tasks), *outputs]))
    verdicts: dict[str, LayerVerdict] = {}
    for task in tasks:
        taken = [reference.take(name) for name in task.taps]
        verdict = _judge_isolated(pairing, task.layer, taken)
        difference = free_running.difference(task.free[0], reference.take(task.free[1]))
        verdicts[verdict.name] = replace(verdict, free_running=difference)
    results: list[LayerVerdict] = []
    for name in outputs:
        try:
            difference = free_running.difference(name, reference.take(name))
        except VerificationError:
            # An output that is no array of numbers, such as a sequence, cannot be compared; the layers before it are.
            difference = None
        results.append(LayerVerdict(name, "output", True, free_running=difference))
    pairing.findings.add(free_running.problem)
    return verdicts, results


class _FreeRun:
    """The deploy twin running on its own intermediate results, if it is built as the fake-quant twin is.

    What goes wrong is a finding, not an error.
    """

    def __init__(self, pairing: Pairing, feeds: Mapping[str, Array], uses: Counter[str]) -> None:
        self.problem: str | None = None
        self._stream: _Stream | None = None
        if pairing.findings.built_differently:
            return
        try:
            simulator = DeploySimulator(pairing.deploy, uses, pairing.input_scales)
            self._stream = _Stream(simulator.stream(feeds), uses)
        except VerificationError as error:
            self.problem = f"the deploy twin does not run: {error}"

    def difference(self, name: str, expected: Array) -> float | None:
        if self._stream is None:
            return None
        try:
            actual = self._stream.take(name)
        except VerificationError as error:
            self.problem = f"the deploy twin does not run: {error}"
            self._stream = None
            return None
        if actual.shape != expected.shape or actual.dtype != expected.dtype:
            shown = [f"{array.dtype} {list(array.shape)}" for array in (actual, expected)]
            self.problem = (
                f"running freely, tensor {name!r} is {shown[0]} in the deploy twin and {shown[1]} in the other"
            )
            return None
        return largest_difference(actual, expected)


def _tasks(pairing: Pairing) -> Iterator[_Task]:
    for layer in pairing.layers:
        chain, dequant = pairing.chains.get(layer.quant), pairing.dequants.get(layer.dequant)
        if chain is not None and dequant is not None:
            made = pairing.deploy.node(layer.dequant).output[0]
            final = pairing.tensors[made]
            yield _Task(layer.index, layer, (chain.widened, chain.output, dequant.product, final), (made, final))
    for index, pair in pairing.rnns.items():
        other = pairing.fake.node(pair.index)
        states = [other.input[slot] for slot in _rnn_states(pair, other)[1]]
        chains = [name for chain in pair.chains for name in (chain.widened, chain.output)]
        free = [(one, two) for one, two in zip(pairing.deploy.node(index).output, pair.outputs, strict=True) if one]
        if free:
            results = [name for name in other.output if name]
            yield _Task(index, pair, (*chains, *states, *results), free[0])


def _rnn_states(pair: RnnPair, node: onnx.NodeProto) -> tuple[list[str], list[int]]:
    """List the other inputs of a float LSTM or GRU that are connected: names and positions."""
    slots = {"sequence_lens": 4, **({"initial_c": 6} if pair.rnn.op_type == "LSTM" else {})}
    connected = {name: slot for name, slot in slots.items() if slot < len(node.input) and node.input[slot]}
    return list(connected), list(connected.values())


def _judge_isolated(pairing: Pairing, layer: DeployLayer | RnnPair, taken: list[Array]) -> LayerVerdict:
    if isinstance(layer, RnnPair):
        name, op_type, mode = layer.rnn.name, layer.rnn.op_type, "float"
    else:
        name, op_type, mode = layer.name, layer.op_type, "integer"
    problems: list[str] = []
    notes: tuple[str, ...] = ()
    judgement: Judgement | None = None
    built_differently = pairing.findings.built_differently
    padded = isinstance(layer, DeployLayer) and bool(layer.path)
    if name in built_differently or (padded and None in built_differently):
        return LayerVerdict(name, op_type, False, mode=mode)
    try:
        if isinstance(layer, RnnPair):
            problems, judgement = _judge_rnn(pairing, layer, taken)
        else:
            problems, judgement, notes = _judge_layer(pairing, layer, taken)
    except VerificationError as error:
        problems.append(str(error))
    if judgement is None:
        return LayerVerdict(name, op_type, False, tuple(problems), mode=mode)
    if judgement.problem:
        problems.append(judgement.problem)
    return LayerVerdict(
        name, op_type, not problems, tuple(problems), judgement.difference, judgement.tolerance, mode=mode, notes=notes
    )


def _judge_layer(
    pairing: Pairing, layer: DeployLayer, taken: list[Array]
) -> tuple[list[str], Judgement, tuple[str, ...]]:
    activation, integers, product, final = taken
    simulator = LayerSimulator(pairing.deploy, layer, keep_weight=False)
    quantized = simulator.quantizer(activation)
    problem = judge_integers("the quantized activation", quantized, integers)
    result = simulator.compute(simulator.follow_path(quantized))
    judgement = judge_values("the dequantized output", result.product, product, result.allowed)
    problems = [problem] if problem else []
    if judgement.problem is None and final is not product and result.output.dtype == final.dtype:
        exact = np.where(result.allowed == 0, 0.0, np.inf)
        narrowed = judge_values(f"the output as {final.dtype}", result.output, final, exact)
        problems += [narrowed.problem] if narrowed.problem else []
    note = overflow_note(result.accumulator)
    return problems, judgement, () if note is None else (note,)


def _judge_rnn(pairing: Pairing, pair: RnnPair, taken: list[Array]) -> tuple[list[str], Judgement]:
    simulator = RnnSimulator(pairing.deploy, pair.rnn, pairing.input_scales.get(pair.rnn.index))
    problems: list[str] = []
    for what, quantizer, x, integers in zip(
        ("X", "the hidden state"), simulator.quantizers, (taken[0], taken[2]), (taken[1], taken[3]), strict=True
    ):
        problem = judge_integers(f"quantized, {what}", quantizer(x), integers)
        problems += [problem] if problem else []
    states, _ = _rnn_states(pair, pairing.fake.node(pair.index))
    outputs = 4 + len(states)
    simulated = simulator.compute({"X": taken[0], "initial_h": taken[2], **dict(zip(states, taken[4:], strict=False))})
    worst: Judgement | None = None
    for number, (mine, other) in enumerate(zip(simulated, taken[outputs:], strict=False)):
        allowed = _RNN_TOLERANCE * np.maximum(1.0, np.abs(other.astype(np.float64)))
        judgement = judge_values(f"output {number}", mine, other, allowed)
        if worst is None or judgement.problem or (not worst.problem and judgement.difference > worst.difference):
            worst = judgement
    return problems, worst if worst is not None else Judgement(None, 0.0, 0.0)
