"""One `record` block as either reader delivers it, before it is judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.records.schema import Kind

__all__ = ["ARRAY_DTYPES", "RecordEntry"]

ARRAY_DTYPES: dict[Kind, npt.DTypeLike] = {Kind.FLOAT: np.float32, Kind.INT32: np.int32, Kind.UINT32: np.int64}
"""The dtype in which the values of a repeated field are kept."""


@dataclass(frozen=True, slots=True)
class RecordEntry:
    """What one `record` block of a file says.

    Attributes:
        line: the line (from 1) on which the block starts.
        key: the layer's name; None where the field is absent.
        value: the fields present in the `value` block, by name; repeated fields are arrays. None where the block is
            absent.
        kv_cache: the same for the `kv_cache_value` block.
    """

    line: int
    key: str | None
    value: dict[str, Any] | None
    kv_cache: dict[str, Any] | None
