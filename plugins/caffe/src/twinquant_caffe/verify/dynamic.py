"""The dynamic step: every layer on its own, on what the fake-quant twin feeds it, and both twins running freely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from twinquant.errors import UnsupportedModelError, VerificationError
from twinquant.verification import (
    LayerVerdict,
    allowed_difference,
    judge_integers,
    judge_values,
    largest_difference,
    overflow_note,
)
from twinquant_caffe.deploy_net import DeployNet
from twinquant_caffe.deploy_runner import DeployRunner
from twinquant_caffe.integer_layers import accumulate, dequantize, is_integral, quantize, spread
from twinquant_caffe.net import BlobVersion, CaffeNet
from twinquant_caffe.run import open_net
from twinquant_caffe.verify.pairing import Pairing, QuantizedPair

__all__ = ["judge_on_data"]

Float32Array = npt.NDArray[np.float32]
Tensors = Mapping[BlobVersion, Float32Array]

_TOLERANCE = 1e-5
"""Allowed difference of dequantized values and of means, relative to the value: runtimes round in their own ways."""


def judge_on_data(
    pairing: Pairing, deploy: DeployNet, fake: CaffeNet, feeds: Mapping[str, Float32Array]
) -> tuple[list[LayerVerdict], list[LayerVerdict]]:
    """Run both twins on an input and judge every layer.

    Returns:
        a verdict for every quantized layer that both twins have, and one for every output.

    Raises:
        CapabilityError: OpenCV is missing.
        VerificationError: the fake-quant twin does not run.
    """
    results = [pair.dequant.writes[0] for pair in pairing.quantized]
    wanted = [version for pair in pairing.quantized for version in _tensors(pair)]
    try:
        found = open_net(fake, [*wanted, *fake.outputs])(feeds)
    except UnsupportedModelError as error:
        raise VerificationError(f"the fake-quant twin does not run: {error}") from error
    free: Tensors = {}
    if not pairing.findings.wired_differently:
        try:
            with DeployRunner(deploy, results) as runner:
                free = runner.tensors(feeds)
        except (UnsupportedModelError, VerificationError) as error:
            pairing.findings.add(f"the deploy twin does not run: {error}")
    verdicts = [
        replace(_judge(pair, found), free_running=_difference(pair.dequant.writes[0], free, found))
        for pair in pairing.quantized
    ]
    outputs = [
        LayerVerdict(version.blob, "output", True, free_running=_difference(version, free, found))
        for version in fake.outputs
    ]
    return verdicts, outputs


def _tensors(pair: QuantizedPair) -> tuple[BlobVersion, ...]:
    return pair.quant.source, pair.quant.result, pair.layer.writes[0], pair.dequant.writes[0]


def _difference(version: BlobVersion, free: Tensors, found: Tensors) -> float | None:
    if version not in free or version not in found or free[version].shape != found[version].shape:
        return None
    return largest_difference(free[version], found[version])


def _judge(pair: QuantizedPair, found: Tensors) -> LayerVerdict:
    name, op_type = pair.deploy.layer.name, pair.deploy.layer.type
    activation, integers, total, result = (found[version] for version in _tensors(pair))
    quantized = quantize(pair.deploy.quant, activation)
    problem = judge_integers("the quantized activation", quantized, integers)
    try:
        accumulator = accumulate(pair.deploy, quantized)
        product = dequantize(pair.deploy, accumulator)
    except (VerificationError, ValueError) as error:
        return LayerVerdict(name, op_type, False, tuple(text for text in (problem, str(error)) if text))
    ones = np.ones(1, np.float32)
    allowed = allowed_difference(accumulator, ones)
    if not is_integral(pair.deploy):
        allowed = allowed + _TOLERANCE * np.maximum(np.abs(accumulator.total), 1.0)
    sums = judge_values("the accumulator", accumulator.total, total.astype(np.float64), allowed)
    inexact = allowed_difference(accumulator, spread(pair.deploy.scale, product.ndim))
    tolerance = inexact + _TOLERANCE * np.abs(product.astype(np.float64))
    if not is_integral(pair.deploy):
        tolerance = tolerance + _TOLERANCE * float(pair.deploy.scale.max())
    judgement = judge_values("the dequantized output", product, result, tolerance)
    problems = tuple(text for text in (problem, sums.problem, judgement.problem) if text)
    note = overflow_note(accumulator)
    return LayerVerdict(
        name,
        op_type,
        not problems,
        problems,
        judgement.difference,
        judgement.tolerance,
        notes=() if note is None else (note,),
    )
