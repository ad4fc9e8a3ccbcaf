"""Proof that two twins agree: everything they hold, and what every layer computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from twinquant.errors import VerificationError
from twinquant.verification import LayerVerdict, VerifyReport
from twinquant_onnx.load import load_model
from twinquant_onnx.run import Pipeline
from twinquant_onnx.verify.correspondence import Pairing
from twinquant_onnx.verify.deploy_layers import DEPLOY_RNN
from twinquant_onnx.verify.dynamic import judge_on_data
from twinquant_onnx.verify.feeds import check_feeds, has_free_lengths, random_feeds
from twinquant_onnx.verify.pairing import pair_twins
from twinquant_onnx.verify.simulator import DeploySimulator
from twinquant_onnx.verify.static import check_contents
from twinquant_onnx.verify.twin import Twin, read_twin

__all__ = ["DeploySimulator", "verify_twins"]

_DEVICE_OPERATORS = {"AscendQuant", "AscendDequant", *DEPLOY_RNN}


def verify_twins(fake_quant: Path, deploy: Path, data: Mapping[str, Any] | None = None) -> VerifyReport:
    """Compare two twins: first all they hold, then every layer on its own on an input, then both running freely.

    Args:
        fake_quant: the fake-quant model file.
        deploy: the deploy model file.
        data: arrays by input name; None means seeded random input.

    Returns:
        one verdict a layer, one an output, and what disagrees outside of any layer. What is wired or shaped differently
        in the deploy twin is not run.

    Raises:
        ModelFileError: a file cannot be read.
        VerificationError: the two are no twins, were given in the wrong order, the data do not fit, or the fake-quant
            twin does not run.
    """
    fake, deployed = read_twin(load_model(fake_quant)), read_twin(load_model(deploy))
    _check_kinds(fake, deployed, fake_quant, deploy)
    pairing = pair_twins(deployed, fake)
    if not pairing.chains and not pairing.rnns:
        raise VerificationError(f"{str(fake_quant)!r} and {str(deploy)!r} have no quantized layer in common")
    check_contents(pairing)
    verdicts, outputs = judge_on_data(pairing, _feeds(pairing, data))
    findings = pairing.findings
    layers: list[LayerVerdict] = []
    for name, op_type in _layers(pairing).items():
        verdict = verdicts.get(name, LayerVerdict(name, op_type, False))
        problems = (*findings.layers.pop(name, ()), *verdict.problems)
        layers.append(replace(verdict, problems=problems, agree=verdict.agree and not problems))
    general = [*findings.general, *(text for texts in findings.layers.values() for text in texts)]
    return VerifyReport(tuple(layers), tuple(outputs), tuple(general))


def _layers(pairing: Pairing) -> dict[str, str]:
    """List the deploy twin's quantized layers in graph order: operator by name."""
    found = [(layer.index, layer.name, layer.op_type) for layer in pairing.layers]
    found += [(index, pair.rnn.name, pair.rnn.op_type) for index, pair in pairing.rnns.items()]
    return {name: op_type for _, name, op_type in sorted(found)}


def _is_deploy(twin: Twin) -> bool:
    return any(node.op_type in _DEVICE_OPERATORS for node in twin.graph.model.graph.node)


def _is_fake_quant(twin: Twin) -> bool:
    return any(".fakequant." in node.name for node in twin.graph.model.graph.node)


def _check_kinds(fake: Twin, deploy: Twin, fake_path: Path, deploy_path: Path) -> None:
    """Refuse models that are not what they are given as."""
    if _is_deploy(fake) and _is_fake_quant(deploy) and not _is_deploy(deploy):
        raise VerificationError(
            f"the two models are swapped: {str(fake_path)!r} is the deploy model and {str(deploy_path)!r} the "
            "fake-quant model; give the fake-quant model first"
        )
    if _is_deploy(fake):
        raise VerificationError(f"{str(fake_path)!r} is a deploy model; a fake-quant model is expected there")
    if not _is_deploy(deploy):
        what = "a fake-quant model" if _is_fake_quant(deploy) else "a model without any quantized layer"
        raise VerificationError(f"{str(deploy_path)!r} is {what}; a deploy model is expected there")
    if not _is_fake_quant(fake):
        raise VerificationError(f"{str(fake_path)!r} has no fake-quantized layer; a fake-quant model is expected there")


def _feeds(pairing: Pairing, data: Mapping[str, Any] | None) -> dict[str, Any]:
    model = pairing.fake.graph.model
    if data is not None:
        return check_feeds(model, data)
    spread = {
        chain.source: (chain.high - chain.low) / (4.0 * float(chain.scale))
        for chain in pairing.chains.values()
        if float(chain.scale) > 0
    }
    candidates = random_feeds(model, spread)
    if not has_free_lengths(model):
        return next(candidates)
    pipeline = Pipeline(pairing.fake.graph, list(model.graph.node), [value.name for value in model.graph.output])
    failure: str | None = None
    for feeds in candidates:
        failure = _failure(pipeline, feeds)
        if failure is None:
            return feeds
    raise VerificationError(
        "the model leaves lengths of its inputs open, and it runs with none of those tried; give input with --data. "
        f"The last attempt: {failure}"
    )


def _failure(pipeline: Pipeline, feeds: Mapping[str, Any]) -> str | None:
    """Try to run a model; return why it does not run, or None."""
    try:
        for _ in pipeline.run(feeds):
            pass
    except VerificationError as error:
        return str(error)
    return None
