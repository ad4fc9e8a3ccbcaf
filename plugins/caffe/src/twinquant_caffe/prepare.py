"""The net that records are about: fused, as calibration fused it."""

from __future__ import annotations

from twinquant.errors import RecordLayerError
from twinquant.records import RecordSet
from twinquant_caffe.fuse import fuse_net
from twinquant_caffe.net import CaffeNet

__all__ = ["prepare_net"]


def prepare_net(net: CaffeNet, records: RecordSet) -> CaffeNet:
    """Fold BatchNorm and Scale layers into all layers whose record does not say `skip_fusion`.

    A net that is prepared already, as the one that was calibrated, stays as it is.

    Raises:
        RecordLayerError: a record names a layer that is folded into another.
    """
    fused = net if net.prepared else fuse_net(net, [record.key for record in records if record.skip_fusion])[0]
    left = {layer.name for layer in fused.layers}
    for host, originals in fused.fused:
        for record in records:
            if record.key in originals and record.key not in left:
                where = f"{records.source}, record {record.key!r}" + (f" (line {record.line})" if record.line else "")
                raise RecordLayerError(
                    f"{where}: the layer is folded into {host!r}, and is no more there to be quantized; remove the "
                    f"record, or set skip_fusion in the record of {host!r} if the net was calibrated without fusion",
                    key=record.key,
                )
    return fused
