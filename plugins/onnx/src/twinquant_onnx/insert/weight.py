"""Quantization of weights."""

from __future__ import annotations

import onnx

from twinquant.plan import LayerKind, LayerPlan, WeightQuant
from twinquant_onnx.constants import Constant, raw_bytes
from twinquant_onnx.insert.constants import Replacement
from twinquant_onnx.insert.twin import Twin
from twinquant_onnx.layers import Site
from twinquant_onnx.operators import set_attribute
from twinquant_onnx.quantized import Encoding, QuantizedWeight, WeightLayout
from twinquant_onnx.topology import Reader

__all__ = ["weight_replacements"]

_LAYOUTS = {
    LayerKind.CONV: WeightLayout.OUTPUT_FIRST,
    LayerKind.CONV_TRANSPOSE: WeightLayout.INPUT_FIRST,
    LayerKind.GEMM: WeightLayout.INPUT_FIRST,
    LayerKind.MATMUL: WeightLayout.INPUT_FIRST,
    LayerKind.LSTM: WeightLayout.RECURRENT,
    LayerKind.GRU: WeightLayout.RECURRENT,
}


def weight_replacements(twin: Twin, site: Site, layer: LayerPlan) -> list[Replacement]:
    """Return what becomes of a layer's weights: none for AveragePool, two for an RNN."""
    wanted: list[Replacement] = []
    if site.weight is not None and layer.weight is not None and site.operator.weight is not None:
        transpose = _drop_trans_b(twin, site)
        reader = Reader(site.index, site.operator.weight)
        wanted.append(_replacement(twin, site, layer, site.weight, layer.weight, reader, transpose=transpose))
    if site.recurrence is not None and layer.recurrence is not None and site.operator.recurrence is not None:
        reader = Reader(site.index, site.operator.recurrence)
        wanted.append(_replacement(twin, site, layer, site.recurrence, layer.recurrence, reader))
    return wanted


def _drop_trans_b(twin: Twin, site: Site) -> bool:
    """Set a Gemm's transB to 0 and tell whether it was 1: the weight is then stored transposed."""
    if site.operator.kind is not LayerKind.GEMM:
        return False
    node = twin.node(site.index)
    if not any(attribute.name == "transB" and attribute.i for attribute in node.attribute):
        return False
    set_attribute(node, "transB", 0)
    return True


def _replacement(
    twin: Twin,
    site: Site,
    layer: LayerPlan,
    constant: Constant,
    quant: WeightQuant,
    reader: Reader,
    *,
    transpose: bool = False,
) -> Replacement:
    layout = _LAYOUTS[site.operator.kind]
    if transpose or constant.transposed:
        layout = WeightLayout.OUTPUT_FIRST
    encoding = _encoding(twin, site, quant)
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
            label=f"layer {layer.name!r}: the weight {constant.name!r}",
            transpose=transpose,
            memory=twin.store.integers,
            name=constant.name,
        )
        del tensor.dims[:]
        tensor.dims.extend(quantized.dims)
        tensor.data_type = quantized.data_type
        twin.store.attach(tensor, quantized, external=external)

    content = (layout, encoding, transpose, site.group, quant.num_bits, quant.scale.tobytes())
    return Replacement(constant, reader, layer.name, content, fill)


def _encoding(twin: Twin, site: Site, quant: WeightQuant) -> Encoding:
    if twin.fake:
        return Encoding.FLOAT if site.recurrence is None else Encoding.DEQUANTIZED
    if quant.num_bits != 4:
        return Encoding.INT8
    return Encoding.PACKED_INT4 if quant.packed else Encoding.ONNX_INT4
