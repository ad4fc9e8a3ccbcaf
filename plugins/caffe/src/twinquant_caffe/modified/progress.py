"""Whether a calibration has filled its record."""

from __future__ import annotations

from twinquant.config import QuantConfig
from twinquant.errors import RecordFileError, RecordValueError
from twinquant.plan import LayerKind
from twinquant.plan.rules import KIND_RULES
from twinquant.records import LayerRecord, RecordSet, parse_record_file, read_begun_records
from twinquant_caffe.layers import describe_layers
from twinquant_caffe.modified.job import CalibrationJob, job_folder, remove_job
from twinquant_caffe.modified.quantize import CalibrationGraph
from twinquant_caffe.net import CaffeNet

__all__ = ["finished_records"]


def finished_records(graph: CalibrationGraph) -> RecordSet:
    """Return the records of a calibration.

    Raises:
        RecordFileError: it has not finished: the message says how many batches were seen, or why it failed, and names
            every layer whose factors are missing.
        RecordValueError: the record lacks factors of layers that are configured to be quantized; it names all of them.
        RecordError: the file is no record file.
    """
    net, config = graph.load()
    begun = read_begun_records(graph.record)
    missing = _missing(net, config, begun)
    job = CalibrationJob.read(job_folder(graph.record))
    if not missing:
        records = parse_record_file(graph.record)
        if job is not None and not job.keep_batches:
            remove_job(graph.record)  # the process that filled the record was killed before it could
        return records
    layers = f"{len(missing)} layer{'' if len(missing) == 1 else 's'}: {'; '.join(missing)}"
    where = f"record file {str(graph.record)!r}"
    if job is None:
        raise RecordValueError(
            f"{where} lacks factors of {layers}. batch_num forward passes have to be run first: call quantize_model "
            f"and run the modified net on {config.batch_num} batches; or switch the layers off in the configuration"
        )
    cut_off = ", but the calibration with them was cut off" if job.spool.count >= job.batch_num else ""
    how_far = job.spool.failure() or f"{job.spool.count} of {job.batch_num} batches seen{cut_off}"
    raise RecordFileError(
        f"{where}: calibration has not finished: {how_far}. The modified net has to run batch_num ({job.batch_num}) "
        f"forward passes first. Factors are missing for {layers}"
    )


def _missing(net: CaffeNet, config: QuantConfig, records: RecordSet) -> list[str]:
    """Return, for each layer that is to be quantized and lacks factors, its name and what it lacks."""
    found = []
    for layer in describe_layers(net):
        settings = config.layers.get(layer.name)
        if layer.kind is None or settings is None or not settings.quant_enable:
            continue
        lacking = _lacking(records.records.get(layer.name), layer.kind)
        if lacking:
            found.append(f"{layer.name} ({', '.join(lacking)})")
    return found


def _lacking(record: LayerRecord | None, kind: LayerKind) -> list[str]:
    lacking = [name for name in ("scale_d", "offset_d") if record is None or getattr(record, name) is None]
    if KIND_RULES[kind].weighted:
        lacking += [name for name in ("scale_w", "offset_w") if record is None or not getattr(record, name).size]
    return lacking
