"""Weights, bias and scales of LSTM and GRU: integers in the deploy twin, real values in the fake-quant twin."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx

from twinquant.errors import VerificationError
from twinquant.numerics import unpack_dequant_parameter
from twinquant_onnx.constants import Constant
from twinquant_onnx.rnn import RNN_RULES
from twinquant_onnx.verify.contents import packed_axis_of
from twinquant_onnx.verify.rnn import RnnPair
from twinquant_onnx.verify.twin import Twin

__all__ = ["RnnComparison", "compare_rnn_tensors", "split_scales"]

Float32Array = npt.NDArray[np.float32]

_WEIGHT_TYPES = (onnx.TensorProto.INT8, onnx.TensorProto.INT4)


@dataclass(frozen=True, slots=True)
class RnnComparison:
    """What the comparison of a recurrent layer's tensors gave.

    Attributes:
        problems: what disagrees.
        deploy: the deploy twin's constants that it covers.
        fake: the fake-quant twin's.
        input_scales: how many of the dequantization parameters belong to the input's weight; None if that is unclear.
    """

    problems: list[str]
    deploy: list[Constant]
    fake: list[Constant]
    input_scales: int | None = None


def compare_rnn_tensors(deploy: Twin, fake: Twin, pair: RnnPair) -> RnnComparison:
    """Compare weights, bias and scales of a recurrent layer."""
    node, other = deploy.node(pair.rnn.index), fake.node(pair.index)
    slots = pair.rnn.inputs
    mine = {name: deploy.finder.find(node.input[slots[name]]) for name in ("W", "R", "B", "parameter")}
    its = {name: fake.finder.find(other.input[slot]) for name, slot in (("W", 1), ("R", 2), ("B", 3))}
    what = f"{pair.rnn.op_type} {pair.rnn.name!r}"
    covered = [c for c in mine.values() if c is not None], [c for c in its.values() if c is not None]
    problems: list[str] = []
    input_scales = None
    try:
        combined = _read_parameter(deploy, mine["parameter"])
        integers, floats = _read_weights(deploy, fake, mine, its)
        rows = integers[0].shape[0]
        splits = list(split_scales(combined, rows, RNN_RULES[pair.rnn.op_type].gates))
        if not splits:
            raise VerificationError(f"{combined.size} dequantization parameters do not fit {rows} rows")
        attempts = [
            _compare_rows(integers, floats, split, pair.scales)
            + _compare_bias(deploy, fake, mine["B"], its["B"], split)
            for _, *split in splits
        ]
        best = min(range(len(splits)), key=lambda number: len(attempts[number]))
        problems, input_scales = attempts[best], splits[best][0]
        if bool(node.input[slots["B"]]) != (mine["B"] is not None):
            problems.append("the bias is not constant")
    except VerificationError as error:
        problems.append(str(error))
    return RnnComparison([f"{what}: {text}" for text in problems], *covered, input_scales)


def _read_parameter(deploy: Twin, constant: Constant | None) -> Float32Array:
    if constant is None or constant.tensor.data_type != onnx.TensorProto.UINT64 or len(constant.tensor.dims) != 1:
        raise VerificationError("the dequantization parameter is not a constant UINT64 tensor of rank 1")
    values = deploy.data(constant).array()
    if np.any(values >> np.uint64(32)):
        raise VerificationError("bits 63..32 of the dequantization parameter are not 0")
    return unpack_dequant_parameter(values)[0]


def _read_weights(
    deploy: Twin, fake: Twin, mine: dict[str, Constant | None], its: dict[str, Constant | None]
) -> tuple[list[npt.NDArray[np.int8]], list[Float32Array]]:
    """Read W and R, the leading axis of length 1 taken off: integers and real values."""
    integers: list[npt.NDArray[np.int8]] = []
    floats: list[Float32Array] = []
    for name in ("W", "R"):
        one, two = mine[name], its[name]
        if one is None or two is None:
            raise VerificationError(f"{name} is not constant")
        if one.tensor.data_type not in _WEIGHT_TYPES or two.tensor.data_type != onnx.TensorProto.FLOAT:
            raise VerificationError(
                f"{name} has other element types than INT8 or INT4, and FLOAT in the fake-quant twin"
            )
        packed = packed_axis_of(one.stored_shape, two.stored_shape, 2)
        if (packed is None and one.stored_shape != two.stored_shape) or len(two.stored_shape) != 3:
            raise VerificationError(
                f"{name} has dims {list(one.stored_shape)} and {list(two.stored_shape)} in the twins"
            )
        integers.append(deploy.data(one).integers(packed)[0])
        floats.append(fake.data(two).array()[0])
    if integers[0].shape[0] != integers[1].shape[0]:
        raise VerificationError("W and R have different numbers of rows")
    return integers, floats


def split_scales(combined: Float32Array, rows: int, gates: int) -> Iterator[tuple[int, Float32Array, Float32Array]]:
    """Split the parameter into the input's and the recurrence's scales in every way that the counts allow.

    Each part has one scale, one a gate or one a row; parts of one length come first.

    Yields:
        how many scales are the input's; then both parts, repeated to one scale a row.
    """
    lengths = dict.fromkeys((rows, gates, 1))
    pairs = [(one, two) for one in lengths for two in lengths if one + two == combined.size]
    for one, two in sorted(pairs, key=lambda pair: pair[0] != pair[1]):
        yield one, np.repeat(combined[:one], rows // one), np.repeat(combined[one:], rows // two)


def _compare_rows(
    integers: list[npt.NDArray[np.int8]],
    floats: list[Float32Array],
    combined: list[Float32Array],
    scales: tuple[np.float32, np.float32],
) -> list[str]:
    """Check that every row is integers * scale_w, and that scale_w * scale is the parameter's."""
    problems: list[str] = []
    for name, whole, real, parameter, scale in zip(("W", "R"), integers, floats, combined, scales, strict=True):
        peak = np.abs(whole.astype(np.int16)).argmax(axis=1)
        rows = np.arange(whole.shape[0])
        largest = whole[rows, peak].astype(np.float64)
        with np.errstate(all="ignore"):
            guess = np.where(largest == 0, parameter / np.float64(scale), real[rows, peak] / largest).astype(np.float32)
            fits = np.zeros(whole.shape[0], np.bool_)
            for candidate in _neighbours(guess):
                same = (whole.astype(np.float32) * candidate[:, None] == real).all(axis=1)
                fits |= same & ((candidate * scale == parameter) | (largest == 0))
        if not fits.all():
            row = int(np.argmin(fits))
            problems.append(
                f"{name}: {int((~fits).sum())} rows are not the deploy twin's integers times a scale that fits the "
                f"dequantization parameter, first row {row}"
            )
    return problems


def _neighbours(values: Float32Array) -> Iterator[Float32Array]:
    """Yield float32 values and those one and two steps away: a quotient of rounded values may be off by so much."""
    yield values
    for direction in (np.float32(np.inf), np.float32(-np.inf)):
        once = np.nextafter(values, direction)
        yield once
        yield np.nextafter(once, direction)


def _compare_bias(
    deploy: Twin, fake: Twin, mine: Constant | None, its: Constant | None, combined: list[Float32Array]
) -> list[str]:
    if mine is None and its is None:
        return []
    if mine is None or its is None:
        return ["only one twin has a constant bias"]
    one, two = deploy.data(mine), fake.data(its)
    if mine.tensor.data_type != onnx.TensorProto.INT32 or its.tensor.data_type != onnx.TensorProto.FLOAT:
        return [f"B is {one.type} in the deploy twin and {two.type} in the other, expected INT32 and FLOAT"]
    if one.dims != two.dims or one.dims != (1, 2 * combined[0].size):
        return [f"B has dims {list(one.dims)} in the deploy twin and {list(two.dims)} in the fake-quant twin"]
    with np.errstate(all="ignore"):
        expected = one.array().astype(np.float32) * np.concatenate(combined)
    different = np.flatnonzero(expected.reshape(-1) != two.array().reshape(-1))
    if not different.size:
        return []
    return [f"B: {different.size} of {expected.size} values differ, first at {int(different[0])}"]
