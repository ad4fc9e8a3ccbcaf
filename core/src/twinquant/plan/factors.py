"""From one record to the numbers of one layer: completeness, lengths, ranges and types, in this order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from twinquant.errors import RecordValueError
from twinquant.numerics import integer_range
from twinquant.plan.layer import LayerInfo
from twinquant.plan.rules import FRAMEWORK_RULES, KIND_RULES, FrameworkRules, KindRules
from twinquant.records import LayerRecord

__all__ = ["Factors", "check_balance_factors", "check_factors", "missing_factors"]

Float32Array = npt.NDArray[np.float32]

_ACT_BITS = {"INT4": 4, "INT8": 8, "INT16": 16}
_WTS_BITS = {"INT4": 4, "INT6": 6, "INT7": 7, "INT8": 8}
_DST_BITS = {"INT4": 4, "INT8": 8}
_PRECISION_MODES = ("DEFAULT", "FORCE_FP16_QUANT")
_BALANCE_RANGE = (2.0**-23, 2.0**23)
_LARGEST_FLOAT16 = 65504.0
_SMALLEST_NORMAL = np.finfo(np.float32).tiny


@dataclass(frozen=True, slots=True, eq=False)
class Factors:
    """The checked factors of one layer.

    Attributes:
        scale_d: activation scale.
        offset_d: activation offset.
        act_bits: bits of the activation.
        scale_w: float32 `(n,)`: weight scale; 1 for layers without a weight.
        wts_bits: bits of the weight.
        packed_weight: 4-bit weights share bytes in an int8 tensor.
        balance: float32 `(Cin,)` balance factors, or None.
        float16_precision: dequantization scales are cut to float16's mantissa.
        scale_h: scale of the hidden state (RNN), or None.
        offset_h: offset of the hidden state (RNN).
        scale_r: float32 `(n,)`: scale of the recurrence weight (RNN), or None.
    """

    scale_d: float
    offset_d: int
    act_bits: int
    scale_w: Float32Array
    wts_bits: int
    packed_weight: bool
    balance: Float32Array | None
    float16_precision: bool
    scale_h: float | None = None
    offset_h: int = 0
    scale_r: Float32Array | None = None


def missing_factors(record: LayerRecord, layer: LayerInfo, framework: str) -> tuple[str, ...]:
    """Return the fields that a layer needs and its record lacks, in the order in which records have them.

    Args:
        record: the record.
        layer: the layer; its `kind` is not None.
        framework: name of the framework.
    """
    return tuple(name for name in _needed(*_rules(layer, framework)) if _absent(getattr(record, name)))


def check_balance_factors(record: LayerRecord, layer: LayerInfo, framework: str, source: str) -> None:
    """Check the balance factors of a record against the layer it names, and nothing else.

    Args:
        record: the record; it has balance factors.
        layer: the layer; its `kind` is not None.
        framework: name of the framework.
        source: how messages call the record file.

    Raises:
        RecordValueError: there are not as many factors as the layer has input channels, or one is out of range.
    """
    check = _Check(record, layer, *_rules(layer, framework), framework, source)
    check.balance_length()
    check.balance_range()


def check_factors(record: LayerRecord, layer: LayerInfo, framework: str, source: str) -> Factors:
    """Check a record against the layer it names.

    Args:
        record: the record.
        layer: the layer; its `kind` is not None.
        framework: name of the framework, which decides about legacy fields.
        source: how messages call the record file.

    Raises:
        RecordValueError: a factor is absent, superfluous, of the wrong length, out of range or of an unknown type.
    """
    check = _Check(record, layer, *_rules(layer, framework), framework, source)
    check.complete()
    check.lengths()
    check.ranges()
    return check.typed()


def _rules(layer: LayerInfo, framework: str) -> tuple[KindRules, FrameworkRules]:
    if layer.kind is None:
        raise ValueError(f"layer {layer.name!r} has no kind: it cannot be quantized")
    return KIND_RULES[layer.kind], FRAMEWORK_RULES.get(framework, FrameworkRules())


def _needed(kind: KindRules, rules: FrameworkRules) -> tuple[str, ...]:
    weight = ("scale_w", "offset_w") if kind.weighted or rules.pooling_has_weight_factors else ()
    return ("scale_d", "offset_d", *weight, *(("scale_h", "offset_h", "scale_r", "offset_r") if kind.gates else ()))


class _Check:
    """The checks of one record; each method is one step of the documented order."""

    def __init__(
        self, record: LayerRecord, layer: LayerInfo, kind: KindRules, rules: FrameworkRules, framework: str, source: str
    ) -> None:
        self.record = record
        self.layer = layer
        self.kind = kind
        self.rules = rules
        self.framework = framework
        self.source = source
        self.weighted = kind.weighted or rules.pooling_has_weight_factors

    def fail(self, field: str, problem: str) -> NoReturn:
        where = f" (line {self.record.line})" if self.record.line else ""
        message = f"{self.source}, record {self.record.key!r}{where}, {field}: {problem}"
        raise RecordValueError(message, key=self.record.key, field=field)

    def complete(self) -> None:
        record = self.record
        needed = _needed(self.kind, self.rules)
        missing = [name for name in needed if _absent(getattr(record, name))]
        if missing:
            what = "the record is empty" if len(missing) == len(needed) else "missing"
            self.fail(
                ", ".join(missing),
                f"{what}; {self.layer.op_type} layers need {', '.join(needed)}. Calibration has not finished: run "
                "the batch_num forward passes first, or remove the record to leave the layer unquantized",
            )
        if not self.weighted:
            for name in ("scale_w", "offset_w"):
                if not _absent(getattr(record, name)):
                    self.fail(name, f"{self.layer.op_type} layers of {self.framework} have no weight; remove the field")
        if record.shift_bit.size:
            self.shift()
        if record.tensor_balance_factor.size and (not self.kind.balanced or self.rules.only_int8):
            self.fail(
                "tensor_balance_factor",
                f"not supported for {self.layer.op_type} layers of {self.framework}; remove the field",
            )
        if self.rules.only_int8:
            for name in ("scale_h", "offset_h", "scale_r", "offset_r"):
                if not _absent(getattr(record, name)):
                    self.fail(name, f"{self.framework} has no quantized RNN layers; remove the field")

    def shift(self) -> None:
        if not self.rules.zero_shift_allowed:
            self.fail(
                "shift_bit", f"not supported for {self.framework} models; recalibrate, or remove the field if it is 0"
            )
        if self.record.shift_bit.any():
            shift = int(self.record.shift_bit[self.record.shift_bit != 0][0])
            self.fail("shift_bit", f"must be 0, got {shift}: a shift cannot be simulated")

    def lengths(self) -> None:
        record, layer = self.record, self.layer
        pairs = [("scale_w", "offset_w")] if self.weighted else []
        if self.kind.gates:
            pairs.append(("scale_r", "offset_r"))
        for scale_name, offset_name in pairs:
            n, m = getattr(record, scale_name).size, getattr(record, offset_name).size
            if n != m:
                self.fail(offset_name, f"has {m} values, but {scale_name} has {n}; they must be equally many")
            allowed = self.allowed_lengths()
            if n not in allowed:
                self.fail(
                    scale_name,
                    f"has {n} values; the {layer.op_type} layer {layer.name!r} takes {' or '.join(map(str, allowed))}",
                )
        self.balance_length()

    def balance_length(self) -> None:
        balance, channels = self.record.tensor_balance_factor.size, self.layer.in_channels
        if balance and balance != channels:
            self.fail(
                "tensor_balance_factor",
                f"has {balance} values; the layer has {channels} input channels, and needs one value for each",
            )

    def allowed_lengths(self) -> tuple[int, ...]:
        channels = self.layer.out_channels
        if self.kind.gates:
            return (self.kind.gates,) if channels in (None, self.kind.gates) else (self.kind.gates, int(channels or 0))
        if self.kind.per_channel and channels not in (None, 1):
            return (1, int(channels or 0))
        return (1,)

    def ranges(self) -> None:
        record = self.record
        bits = 16 if record.act_type == "INT16" and record.dst_type is None else 8
        self.scales("scale_d", np.asarray([record.scale_d], np.float32))
        self.offset("offset_d", record.offset_d, bits)
        if self.weighted:
            self.scales("scale_w", record.scale_w)
            self.zeros("offset_w", record.offset_w)
        if not self.kind.weighted and self.weighted and record.scale_w[0] != 1:
            self.fail(
                "scale_w", f"must be 1 for {self.layer.op_type} layers, which have no weight, got {record.scale_w[0]}"
            )
        self.products("scale_w", record.scale_w, "scale_d", record.scale_d)
        if self.kind.gates:
            self.scales("scale_h", np.asarray([record.scale_h], np.float32))
            self.offset("offset_h", record.offset_h, bits)
            self.scales("scale_r", record.scale_r)
            self.zeros("offset_r", record.offset_r)
            self.products("scale_r", record.scale_r, "scale_h", record.scale_h)
        self.balance_range()

    def balance_range(self) -> None:
        low, high = _BALANCE_RANGE
        factors = self.record.tensor_balance_factor
        self.all_of("tensor_balance_factor", factors, (factors >= low) & (factors <= high), "must be in [2^-23, 2^23]")
        if self.layer.element_type == "float16":
            usable = factors >= np.float32(1 / _LARGEST_FLOAT16)
            self.all_of("tensor_balance_factor", factors, usable, "its reciprocal must fit the layer's type, float16")

    def all_of(self, field: str, values: npt.NDArray[Any], good: npt.NDArray[np.bool_], rule: str) -> None:
        if good.all():
            return
        index = int(np.argmin(good))
        place = f" (value {index + 1} of {values.size})" if values.size > 1 else ""
        self.fail(field, f"{rule}, got {values[index]!s}{place}")

    def scales(self, field: str, values: Float32Array) -> None:
        self.all_of(field, values, (values > 0) & np.isfinite(values), "must be a finite number > 0")
        with np.errstate(over="ignore", divide="ignore"):
            usable = np.isfinite(np.float32(1) / values)
        self.all_of(field, values, usable, "is so small that 1/scale is infinite in float32")

    def zeros(self, field: str, values: npt.NDArray[np.int32]) -> None:
        self.all_of(field, values, values == 0, "must be 0, weights are quantized symmetrically")

    def offset(self, field: str, value: int | None, bits: int) -> None:
        low, high = integer_range(bits)
        if value is None or not low <= value <= high:
            self.fail(field, f"must be in [{low}, {high}], the range of INT{bits}, got {value}")

    def products(self, name: str, values: Float32Array, other: str, factor: float | None) -> None:
        with np.errstate(over="ignore", under="ignore"):
            product = values * np.float32(1 if factor is None else factor)
        good = np.isfinite(product) & (product >= _SMALLEST_NORMAL)
        rule = f"{name} * {other} must be a normal float32 number; with {other} = {factor} it is not"
        self.all_of(name, values, good, rule)

    def one_of(self, field: str, allowed: tuple[str, ...]) -> None:
        value = getattr(self.record, field)
        if value is not None and value not in allowed:
            self.fail(field, f"must be one of {', '.join(allowed)}, got {value!r}")

    def typed(self) -> Factors:
        record = self.record
        self.one_of("dst_type", tuple(_DST_BITS))
        self.one_of("act_type", tuple(_ACT_BITS))
        self.one_of("wts_type", tuple(_WTS_BITS))
        self.one_of("fakequant_precision_mode", _PRECISION_MODES)
        if record.dst_type == "INT8" and record.wts_type == "INT4":
            self.fail("wts_type", "INT4 contradicts dst_type INT8; remove one of the two")
        if record.dst_type is not None:
            act_bits = wts_bits = _DST_BITS[record.dst_type]
        else:
            act_bits = _ACT_BITS[record.act_type or "INT8"]
            wts_bits = _WTS_BITS[record.wts_type or "INT8"]
            if not self.kind.weighted and wts_bits != 8:
                self.fail(
                    "wts_type",
                    f"must be INT8 for {self.layer.op_type} layers, which have no weight, got {record.wts_type!r}",
                )
        type_field = "act_type" if record.dst_type is None else "dst_type"
        if act_bits not in self.kind.activation_bits:
            allowed = " or ".join(f"INT{bits}" for bits in self.kind.activation_bits)
            self.fail(type_field, f"{self.layer.op_type} layers take {allowed} activations, got INT{act_bits}")
        if self.rules.only_int8 and (act_bits, wts_bits) != (8, 8):
            self.fail(type_field if act_bits != 8 else "wts_type", f"{self.framework} models take INT8 only")
        packed = wts_bits == 4 and record.wts_type == "INT4"
        odd = next((n for n in self.layer.packed_lengths if n % 2), None)
        if packed and odd is not None:
            self.fail(
                "wts_type",
                f"INT4 packs two weights of neighbouring input channels into a byte, but the layer {self.layer.name!r} "
                f"has an odd number of them ({odd}); use INT8 for this layer",
            )
        return Factors(
            scale_d=float(np.float32(record.scale_d)),
            offset_d=int(record.offset_d or 0),
            act_bits=act_bits,
            scale_w=record.scale_w.astype(np.float32) if self.weighted else np.ones(1, np.float32),
            wts_bits=wts_bits,
            packed_weight=packed,
            balance=record.tensor_balance_factor.astype(np.float32) if record.tensor_balance_factor.size else None,
            float16_precision=record.fakequant_precision_mode == "FORCE_FP16_QUANT",
            scale_h=float(np.float32(record.scale_h)) if self.kind.gates and record.scale_h is not None else None,
            offset_h=int(record.offset_h or 0),
            scale_r=record.scale_r.astype(np.float32) if self.kind.gates else None,
        )


def _absent(value: Any) -> bool:
    """Tell whether an optional field is None, or a repeated one empty."""
    return value is None or (isinstance(value, np.ndarray) and not value.size)
