"""The static step: both twins hold the same integers, scales, offsets and float parameters."""

from __future__ import annotations

from itertools import zip_longest

import numpy as np

from twinquant_caffe.schema import DATA, INT8_DATA, INT32_DATA, UINT64_DATA
from twinquant_caffe.verify.pairing import Pairing, QuantizedPair
from twinquant_caffe.written import FIELD_NAMES, WrittenBlob, WrittenTwin

__all__ = ["check_contents"]


def check_contents(pairing: Pairing, deploy: WrittenTwin, fake: WrittenTwin) -> None:
    """Compare what the caffemodels of two twins hold; what disagrees is noted in the pairing's findings."""
    findings = pairing.findings
    for pair in pairing.quantized:
        name = pair.deploy.layer.name
        findings.add(_quant_problem(pair), name)
        for problem in _parameter_problems(pair, fake.blobs(name)):
            findings.add(problem, name)
        findings.add(_scale_problem(pair, fake.blobs(pair.dequant.name)), name)
    for layers in pairing.floats:
        one, two = deploy.blobs(layers.deploy.name), fake.blobs(layers.fake.name)
        if len(one) != len(two):
            findings.add(
                f"layer {layers.deploy.name!r} has {len(one)} parameters in the deploy twin, {len(two)} in the other"
            )
        for index, (left, right) in enumerate(zip(one, two, strict=False)):
            if not _same(left, right):
                findings.add(f"layer {layers.deploy.name!r}: parameter {index} differs between the twins")


def _quant_problem(pair: QuantizedPair) -> str | None:
    one, two = pair.deploy.quant, pair.quant
    if (one.reciprocal, one.offset) == (two.reciprocal, two.offset):
        return None
    return (
        f"the input is quantized with scale {one.reciprocal!r} and offset {one.offset} in the deploy twin, "
        f"{two.reciprocal!r} and {two.offset} in the fake-quant twin"
    )


def _parameter_problems(pair: QuantizedPair, fake: tuple[WrittenBlob, ...]) -> list[str]:
    """Compare weight and bias: integers in one twin, floats of the same value in the other."""
    problems: list[str] = []
    fields = (INT8_DATA, INT32_DATA)
    parameters = zip_longest(("the weight", "the bias"), fields, pair.deploy.blobs, fake)
    for what, field, one, two in parameters:
        if one is None and two is None:
            continue
        if one is None or two is None or field is None:
            problems.append(f"only one twin has {what}")
        elif field not in one.runs or DATA not in two.runs:
            stored = [FIELD_NAMES[found] for blob in (one, two) for found in blob.runs]
            problems.append(f"{what} is stored as {stored}, expected {FIELD_NAMES[field]} and data")
        elif one.lengths != two.lengths:
            problems.append(
                f"{what} has the shape {list(one.lengths)} in the deploy twin, {list(two.lengths)} in the other"
            )
        else:
            problems += _integer_problems(what, field, one, two)
    return problems


def _integer_problems(what: str, field: int, deploy: WrittenBlob, fake: WrittenBlob) -> list[str]:
    count, total, place, first = 0, 0, 0, ""
    pieces = deploy.blocks(field) if field == INT8_DATA else iter([deploy.values(field)])
    floats = fake.blocks(DATA) if field == INT8_DATA else iter([fake.values(DATA)])
    for one, two in zip_longest(pieces, floats, fillvalue=np.empty(0)):
        if one.size != two.size:
            return [f"{what} has another number of values in the fake-quant twin"]
        different = np.flatnonzero(one.astype(np.float64) != two.astype(np.float64))
        if different.size and not count:
            at = int(different[0])
            first = f"at {place + at} the deploy twin has {int(one[at])}, the fake-quant twin {float(two[at]):g}"
        count += different.size
        total += one.size
        place += one.size
    return [f"{what}: {count} of {total} integers differ; {first}"] if count else []


def _scale_problem(pair: QuantizedPair, fake: tuple[WrittenBlob, ...]) -> str | None:
    """Compare the DeQuant's parameters with the factors of the Scale layer, bit for bit."""
    if len(fake) != 1 or DATA not in fake[0].runs:
        return f"the fake-quant twin's {pair.dequant.name!r} must have one parameter of data"
    packed, floats = pair.deploy.packed_scale, fake[0].values(DATA)
    if np.any(packed >> np.uint64(32)):
        return f"the dequantization's {FIELD_NAMES[UINT64_DATA]} has bits above the scale, expected 0 there"
    scale = pair.deploy.scale
    if scale.size not in (1, floats.size):
        return f"there are {scale.size} dequantization scales, the fake-quant twin has {floats.size}"
    expected = np.ascontiguousarray(np.broadcast_to(scale, floats.shape))
    different = np.flatnonzero(expected.view(np.uint32) != floats.view(np.uint32))
    if not different.size:
        return None
    at = int(different[0])
    return (
        f"{different.size} of {floats.size} dequantization scales differ; at {at} the deploy twin has "
        f"{float(expected[at])!r}, the fake-quant twin {float(floats[at])!r}"
    )


def _same(one: WrittenBlob, two: WrittenBlob) -> bool:
    """Tell whether two float parameters are the same bit for bit."""
    if one.lengths != two.lengths or one.runs.keys() != two.runs.keys():
        return False
    return all(
        left.tobytes() == right.tobytes()
        for field in one.runs
        for left, right in zip_longest(one.blocks(field), two.blocks(field), fillvalue=np.empty(0))
    )
