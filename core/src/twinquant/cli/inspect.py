"""`twinquant inspect`: what a record or a model holds."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from twinquant.cli.console import Console
from twinquant.cli.numbers import count, number, spread
from twinquant.cli.sources import open_model
from twinquant.errors import NoFrameworkError
from twinquant.records import LayerRecord, RecordSet, parse_record_file

__all__ = ["run"]

_log = logging.getLogger(__name__)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Print a table of the record's layers, or of the facts about the model."""
    try:
        framework, path = open_model(arguments.file, arguments.framework)
    except NoFrameworkError:
        if not _looks_like_text(Path(arguments.file)):
            raise
        _print_records(parse_record_file(arguments.file), console)
        return 0
    console.table(("fact", "value"), framework.inspect(path))
    return 0


def _looks_like_text(path: Path) -> bool:
    """Tell whether the file may be a record: a file that is no text is a model nobody knows."""
    try:
        with path.open("rb") as file:
            return b"\0" not in file.read(4096)
    except OSError:
        return False


def _print_records(records: RecordSet, console: Console) -> None:
    console.line(f"{records.source}: {records.dialect.value} dialect, {count(len(records), 'layer')}\n")
    console.table(("layer", "line", "scale_d", "offset_d", "scale_w", "types", "besides"), map(_record_row, records))
    for warning in records.warnings:
        _log.warning(warning)


def _record_row(record: LayerRecord) -> tuple[str, ...]:
    return (
        record.key,
        str(record.line),
        number(record.scale_d),
        number(record.offset_d),
        spread(record.scale_w),
        _types(record),
        _besides(record),
    )


def _types(record: LayerRecord) -> str:
    """Say which types the layer gets: dst_type decides both, and absent means INT8."""
    act, wts = (record.dst_type or given or "INT8" for given in (record.act_type, record.wts_type))
    return act if act == wts else f"{act} input, {wts} weight"


def _besides(record: LayerRecord) -> str:
    """Name what few records have."""
    facts = {
        "no value": not record.has_value,
        "skip_fusion": record.skip_fusion,
        f"{record.fakequant_precision_mode}": record.fakequant_precision_mode not in (None, "DEFAULT"),
        f"{count(record.tensor_balance_factor.size, 'balance factor')}": record.tensor_balance_factor.size,
        f"scale_h {number(record.scale_h)}": record.scale_h is not None,
        f"scale_r {spread(record.scale_r)}": record.scale_r.size,
        "shift_bit": record.shift_bit.any(),
        "about a tensor": record.is_tensor_quantize,
        "key/value cache": record.kv_cache is not None,
    }
    return ", ".join(fact for fact, present in facts.items() if present)
