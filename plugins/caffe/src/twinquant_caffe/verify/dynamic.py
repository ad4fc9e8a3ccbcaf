"""The dynamic step: every layer on its own, on what the fake-quant twin feeds it, and both twins running freely."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

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
from twinquant_caffe.shapes import ShapeRule
from twinquant_caffe.verify.pairing import Pairing, QuantizedPair

__all__ = ["judge_on_data"]

Float32Array = npt.NDArray[np.float32]
Tensors = Mapping[BlobVersion, Float32Array]

_TOLERANCE = 1e-5
"""Allowed difference of dequantized values and of means, relative to the value: runtimes round in their own ways."""


def judge_on_data(
    pairing: Pairing,
    deploy: DeployNet,
    fake: CaffeNet,
    feeds: Mapping[str, Float32Array],
    rules: Mapping[str, ShapeRule] | None = None,
) -> tuple[list[LayerVerdict], list[LayerVerdict]]:
    """Run both twins on an input and judge every layer.

    Args:
        pairing: the twins side by side.
        deploy: the deploy twin.
        fake: the fake-quant twin.
        feeds: an array for every input.
        rules: shapes of what layers of registered types write in the fake-quant twin, by type.

    Returns:
        a verdict for every quantized layer that both twins have, and one for every output.

    Raises:
        CapabilityError: OpenCV is missing.
        VerificationError: the fake-quant twin does not run.
    """
    results = [pair.dequant.writes[0] for pair in pairing.quantized]
    wanted = [version for pair in pairing.quantized for version in _tensors(pair)]
    try:
        found = open_net(fake, [*wanted, *fake.outputs], rules=rules)(feeds)
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
    undefined = int(np.count_nonzero(np.isnan(activation)))
    quantized = quantize(pair.deploy.quant, activation)
    problem = judge_integers("the quantized activation", quantized, _known(quantized, integers, undefined))
    try:
        accumulator = accumulate(pair.deploy, quantized)
        product = dequantize(pair.deploy, accumulator)
    except (VerificationError, ValueError) as error:
        return LayerVerdict(name, op_type, False, tuple(text for text in (problem, str(error)) if text))
    total, result = _known(accumulator.total, total, undefined), _known(product, result, undefined)
    ones = np.ones(1, np.float32)
    allowed = allowed_difference(accumulator, ones)
    inexact = allowed_difference(accumulator, spread(pair.deploy.scale, product.ndim))
    tolerance = inexact + _TOLERANCE * np.abs(product.astype(np.float64))
    if not is_integral(pair.deploy):
        allowed = allowed + _TOLERANCE * np.maximum(np.abs(accumulator.total), 1.0)
        tolerance = tolerance + _TOLERANCE * float(pair.deploy.scale.max())
    # The mean of a window with nothing in it is NaN in both twins; what is allowed there is not NaN, but nothing.
    allowed, tolerance = np.nan_to_num(allowed, nan=0.0), np.nan_to_num(tolerance, nan=0.0)
    sums = judge_values("the accumulator", accumulator.total, total.astype(np.float64), allowed)
    judgement = judge_values("the dequantized output", product, result, tolerance)
    problems = tuple(text for text in (problem, sums.problem, judgement.problem) if text)
    notes = (_nan_note(undefined), overflow_note(accumulator) if is_integral(pair.deploy) else None)
    return LayerVerdict(
        name,
        op_type,
        not problems,
        problems,
        judgement.difference,
        judgement.tolerance,
        notes=tuple(note for note in notes if note),
    )


def _known(simulated: npt.NDArray[Any], found: Float32Array, undefined: int) -> npt.NDArray[Any]:
    """Return what was found, and what was simulated where NaNs in the activation made NaNs of it."""
    if not undefined or simulated.shape != found.shape:
        return found
    return np.where(np.isnan(found), simulated, found)


def _nan_note(undefined: int) -> str | None:
    if not undefined:
        return None
    return (
        f"{undefined} values of its activation are NaN, for which no integer stands; what comes of them is not compared"
    )
