"""What one record file says, before any graph is known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

import numpy as np
import numpy.typing as npt

__all__ = ["Dialect", "KvCacheFactors", "LayerRecord", "RecordSet"]

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]


def _no_floats() -> Float32Array:
    return np.empty(0, np.float32)


def _no_ints() -> Int32Array:
    return np.empty(0, np.int32)


class Dialect(str, Enum):
    """Which tool's schema a record file follows; files differ in the fields they use, never in syntax."""

    TORCH = "torch"
    ONNX = "onnx"
    CAFFE = "caffe"
    THIRD_PARTY = "third_party"


@dataclass(frozen=True, slots=True, eq=False)
class KvCacheFactors:
    """The factors of a key/value cache entry.

    Attributes:
        scale: float32, shape `(n,)`.
        offset: int32, shape `(n,)`.
    """

    scale: Float32Array = field(default_factory=_no_floats)
    offset: Int32Array = field(default_factory=_no_ints)


@dataclass(frozen=True, slots=True, eq=False)
class LayerRecord:
    """The factors that calibration measured for one layer, exactly as the file has them.

    `None` means that the field is absent, which differs from a present zero. Repeated fields that are absent are empty
    arrays. Float values are float32 values (held in a Python float where there is one only).

    Attributes:
        key: the layer's name.
        line: the line of the file (from 1) on which the record starts; 0 for a record that was not read from a file.
        has_value: whether the record has a `value` block at all.
        scale_d: activation scale, per tensor.
        offset_d: activation offset, the zero point in the signed domain.
        scale_w: float32 `(n,)`: weight scale; n = 1 per tensor, or one per output channel (RNN: gate or row).
        offset_w: int32 `(n,)`: weight offset.
        shift_bit: int64 `(n,)`: shift of a legacy dequantization.
        tensor_balance_factor: float32 `(Cin,)`: factor the activation is divided by.
        skip_fusion: the layer takes no part in Conv+BatchNorm fusion; absent means false.
        dst_type: type of activation and weight; wins over `act_type` and `wts_type`.
        act_type: type of the activation.
        wts_type: type of the weight.
        fakequant_precision_mode: DEFAULT or FORCE_FP16_QUANT.
        scale_h: scale of an RNN's hidden state.
        offset_h: offset of an RNN's hidden state.
        scale_r: float32 `(n,)`: scale of an RNN's recurrence weight.
        offset_r: int32 `(n,)`: offset of an RNN's recurrence weight.
        channels: informational, the layer's input shape.
        height: informational.
        width: informational.
        is_tensor_quantize: the record is about a tensor, not a layer.
        op_data_type: element type the producing tool saw.
        cluster: int32 `(n,)`: cluster centres of weight clustering.
        kv_cache: factors of a key/value cache, where the record is about one.
    """

    key: str
    line: int = 0
    has_value: bool = True
    scale_d: float | None = None
    offset_d: int | None = None
    scale_w: Float32Array = field(default_factory=_no_floats)
    offset_w: Int32Array = field(default_factory=_no_ints)
    shift_bit: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    tensor_balance_factor: Float32Array = field(default_factory=_no_floats)
    skip_fusion: bool | None = None
    dst_type: str | None = None
    act_type: str | None = None
    wts_type: str | None = None
    fakequant_precision_mode: str | None = None
    scale_h: float | None = None
    offset_h: int | None = None
    scale_r: Float32Array = field(default_factory=_no_floats)
    offset_r: Int32Array = field(default_factory=_no_ints)
    channels: int | None = None
    height: int | None = None
    width: int | None = None
    is_tensor_quantize: bool | None = None
    op_data_type: str | None = None
    cluster: Int32Array = field(default_factory=_no_ints)
    kv_cache: KvCacheFactors | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RecordSet:
    """All records of one file, in file order; of records with one key the last is kept.

    Attributes:
        records: the records by key.
        dialect: whose schema the file follows.
        path: the file, or None for records that were built in memory.
        prune_records: the texts of `prune_record` blocks: another feature's, kept for writing, never applied.
        duplicate_keys: keys that occur more than once, in order of their first occurrence.
    """

    records: dict[str, LayerRecord]
    dialect: Dialect = Dialect.ONNX
    path: Path | None = None
    prune_records: tuple[str, ...] = ()
    duplicate_keys: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[LayerRecord]:
        return iter(self.records.values())

    def __len__(self) -> int:
        return len(self.records)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a user should know although it is no error: keys that occur more than once."""
        return tuple(
            f"{self.source}: record {key!r} occurs more than once; the last one counts" + _line_of(self.records[key])
            for key in self.duplicate_keys
        )

    @property
    def source(self) -> str:
        """How messages call the file."""
        return f"record file {str(self.path)!r}" if self.path is not None else "the records"


def _line_of(record: LayerRecord) -> str:
    return f" (line {record.line})" if record.line else ""
