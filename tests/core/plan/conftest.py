"""Layers and records for tests of the plan."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from twinquant.plan import LayerInfo, LayerKind, QuantPlan, build_plan
from twinquant.records import LayerRecord, RecordSet

KINDS = {
    "conv": LayerInfo(
        "conv", "Conv", LayerKind.CONV, activation="x", out_channels=4, in_channels=6, packed_lengths=(6,)
    ),
    "deconv": LayerInfo(
        "deconv",
        "ConvTranspose",
        LayerKind.CONV_TRANSPOSE,
        activation="x",
        out_channels=4,
        in_channels=6,
        packed_lengths=(6,),
    ),
    "gemm": LayerInfo(
        "gemm", "Gemm", LayerKind.GEMM, activation="x", in_channels=6, packed_lengths=(6,), has_bias=True
    ),
    "matmul": LayerInfo("matmul", "MatMul", LayerKind.MATMUL, activation="x", in_channels=6, packed_lengths=(6,)),
    "pool": LayerInfo("pool", "AveragePool", LayerKind.AVERAGE_POOL, activation="x"),
    "lstm": LayerInfo(
        "lstm",
        "LSTM",
        LayerKind.LSTM,
        activation="x",
        out_channels=20,
        in_channels=6,
        packed_lengths=(6, 6),
        has_bias=True,
    ),
    "gru": LayerInfo(
        "gru",
        "GRU",
        LayerKind.GRU,
        activation="x",
        out_channels=15,
        in_channels=6,
        packed_lengths=(6, 6),
        has_bias=True,
    ),
}
GATES = {"lstm": 4, "gru": 3}


def make_record(name: str, *, drop: tuple[str, ...] = (), **fields: Any) -> LayerRecord:
    """Build a complete record of a layer in KINDS; `drop` leaves fields away, `fields` replaces or adds some."""
    gates = GATES.get(name, 1)
    made: dict[str, Any] = {"scale_d": 0.5, "offset_d": 3, "scale_w": [1.0 if name == "pool" else 0.25] * gates}
    if gates > 1:
        made |= {"scale_h": 0.125, "offset_h": -2, "scale_r": [0.0625] * gates}
    made |= fields
    for scale, offset in (("scale_w", "offset_w"), ("scale_r", "offset_r")):
        if made.get(scale) is not None:
            made.setdefault(offset, [0] * len(made[scale]))
    types = {"scale_w": np.float32, "scale_r": np.float32, "tensor_balance_factor": np.float32}
    types |= {"offset_w": np.int32, "offset_r": np.int32, "shift_bit": np.int64}
    with np.errstate(all="ignore"):
        arrays = {key: np.asarray(value, types[key]) if key in types else value for key, value in made.items()}
    return LayerRecord(name, **{key: value for key, value in arrays.items() if key not in drop})


def make_plan(
    *records: LayerRecord, framework: str = "onnx", layers: list[LayerInfo] | None = None, **more: Any
) -> QuantPlan:
    """Plan records for the layers of KINDS."""
    known = layers if layers is not None else list(KINDS.values())
    return build_plan(RecordSet({record.key: record for record in records}, **more), known, framework)


@pytest.fixture
def kit() -> SimpleNamespace:
    """The two builders, and the layers."""
    return SimpleNamespace(record=make_record, plan=make_plan, layers=KINDS)
