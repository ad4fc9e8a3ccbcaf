"""Quantization of weights."""

from __future__ import annotations

from collections.abc import Iterator

import onnx

from twinquant.plan import LayerKind, WeightQuant
from twinquant_onnx.constants import Constant, raw_bytes
from twinquant_onnx.insert.constants import Replacement
from twinquant_onnx.insert.twin import Twin
from twinquant_onnx.layers import Site
from twinquant_onnx.operators import set_attribute
from twinquant_onnx.quantized import Encoding, QuantizedWeight, WeightLayout
from twinquant_onnx.topology import Reader

__all__ = ["rounded_weights", "weight_replacements"]

_LAYOUTS = {
    LayerKind.CONV: WeightLayout.OUTPUT_FIRST,
    LayerKind.CONV_TRANSPOSE: WeightLayout.INPUT_FIRST,
    LayerKind.GEMM: WeightLayout.INPUT_FIRST,
    LayerKind.MATMUL: WeightLayout.INPUT_FIRST,
    LayerKind.LSTM: WeightLayout.RECURRENT,
    LayerKind.GRU: WeightLayout.RECURRENT,
}


def weight_replacements(
    twin: Twin, site: Site, weight: WeightQuant | None, recurrence: WeightQuant | None
) -> list[Replacement]:
    """Return what becomes of a layer's weights in a twin: none for AveragePool, two for an RNN."""
    transpose = weight is not None and _drop_trans_b(twin, site)
    return [
        _replacement(twin, site, constant, quant, reader, _encoding(twin, site, quant), transpose=transpose)
        for constant, quant, reader in _weights(site, weight, recurrence)
    ]


def rounded_weights(
    twin: Twin, site: Site, weight: WeightQuant | None, recurrence: WeightQuant | None
) -> list[Replacement]:
    """Return the same weights as floats on the grids of their integers, for the layer as it is."""
    return [
        _replacement(twin, site, constant, quant, reader, Encoding.ROUNDED, output_first=_has_trans_b(twin, site))
        for constant, quant, reader in _weights(site, weight, recurrence)
    ]


def _weights(
    site: Site, weight: WeightQuant | None, recurrence: WeightQuant | None
) -> Iterator[tuple[Constant, WeightQuant, Reader]]:
    """Yield the weights that a layer has and that are quantized, and where it reads them."""
    places = (
        (site.weight, weight, site.operator.weight),
        (site.recurrence, recurrence, site.operator.recurrence),
    )
    for constant, quant, slot in places:
        if constant is not None and quant is not None and slot is not None:
            yield constant, quant, Reader(site.index, slot)


def _has_trans_b(twin: Twin, site: Site) -> bool:
    """Tell whether a layer is a Gemm that transposes its weight."""
    attributes = twin.node(site.index).attribute
    return site.operator.kind is LayerKind.GEMM and any(each.name == "transB" and each.i for each in attributes)


def _drop_trans_b(twin: Twin, site: Site) -> bool:
    """Set a Gemm's transB to 0 and tell whether it was 1: the weight is then stored transposed."""
    if not _has_trans_b(twin, site):
        return False
    set_attribute(twin.node(site.index), "transB", 0)
    return True


def _replacement(
    twin: Twin,
    site: Site,
    constant: Constant,
    quant: WeightQuant,
    reader: Reader,
    encoding: Encoding,
    *,
    output_first: bool = False,
    transpose: bool = False,
) -> Replacement:
    layout = _LAYOUTS[site.operator.kind]
    if output_first or transpose or constant.transposed:
        layout = WeightLayout.OUTPUT_FIRST
    source, source_type = raw_bytes(constant.tensor, twin.store), constant.tensor.data_type
    stored = twin.store.get(constant.tensor)
    external = stored is not None and stored.external

    def fill(tensor: onnx.TensorProto) -> None:
        quantized = QuantizedWeight(
            source,
            source_type,
            constant.stored_shape,
            quant.scale,
            quant.num_bits,
            layout=layout,
            encoding=encoding,
            label=f"layer {site.name!r}: the weight {constant.name!r}",
            transpose=transpose,
            # Nothing else will be made of a rounded weight while it is in memory.
            memory=None if encoding is Encoding.ROUNDED else twin.store.integers,
            name=constant.name,
        )
        del tensor.dims[:]
        tensor.dims.extend(quantized.dims)
        tensor.data_type = quantized.data_type
        twin.store.attach(tensor, quantized, external=external)

    content = (layout, encoding, transpose, site.group, quant.num_bits, quant.scale.tobytes())
    return Replacement(constant, reader, site.name, content, fill)


def _encoding(twin: Twin, site: Site, quant: WeightQuant) -> Encoding:
    if twin.fake:
        return Encoding.FLOAT if site.recurrence is None else Encoding.DEQUANTIZED
    if quant.num_bits != 4:
        return Encoding.INT8
    return Encoding.PACKED_INT4 if quant.packed else Encoding.ONNX_INT4
