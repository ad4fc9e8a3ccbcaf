"""WHAT CALIBRATION MEASURED: record files of every dialect, read, and written; no graph is known here."""

from twinquant.records.parser import parse_record_file, parse_record_text
from twinquant.records.record import Dialect, KvCacheFactors, LayerRecord, RecordSet
from twinquant.records.unfinished import read_begun_records, write_unfinished_record
from twinquant.records.writer import format_records, write_record_file

__all__ = [
    "Dialect",
    "KvCacheFactors",
    "LayerRecord",
    "RecordSet",
    "format_records",
    "parse_record_file",
    "parse_record_text",
    "read_begun_records",
    "write_record_file",
    "write_unfinished_record",
]
