"""What a layer takes of the settings: by its kind, and by the shape of its weight."""

from __future__ import annotations

from twinquant.plan import LayerInfo, LayerKind
from twinquant.plan.rules import KIND_RULES

__all__ = [
    "TYPE_NAMES",
    "can_be_fused",
    "is_of_type",
    "layer_kind",
    "must_be_symmetric",
    "takes_ada_round",
    "takes_balance_factors",
    "takes_channel_wise",
    "takes_general_activation_bits",
    "takes_general_weight_bits",
]

_PRODUCTS = (LayerKind.GEMM, LayerKind.MATMUL)
_FUSED_PRODUCTS = ("InnerProduct",)
"""Operators for matrix products into which their frameworks' plugins fold, besides convolutions."""

TYPE_NAMES: dict[str, tuple[tuple[LayerKind, ...], int | None]] = {
    "Conv": ((LayerKind.CONV,), None),
    "Convolution": ((LayerKind.CONV,), None),
    "Conv1d": ((LayerKind.CONV,), 3),
    "Conv2d": ((LayerKind.CONV,), 4),
    "Conv3d": ((LayerKind.CONV,), 5),
    "ConvTranspose": ((LayerKind.CONV_TRANSPOSE,), None),
    "Deconvolution": ((LayerKind.CONV_TRANSPOSE,), None),
    "ConvTranspose1d": ((LayerKind.CONV_TRANSPOSE,), 3),
    "ConvTranspose2d": ((LayerKind.CONV_TRANSPOSE,), 4),
    "ConvTranspose3d": ((LayerKind.CONV_TRANSPOSE,), 5),
    "Gemm": ((LayerKind.GEMM,), None),
    "MatMul": ((LayerKind.MATMUL,), None),
    "Linear": (_PRODUCTS, None),
    "InnerProduct": (_PRODUCTS, None),
    "AveragePool": ((LayerKind.AVERAGE_POOL,), None),
    "AvgPool2d": ((LayerKind.AVERAGE_POOL,), None),
    "Pooling": ((LayerKind.AVERAGE_POOL,), None),
    "LSTM": ((LayerKind.LSTM,), None),
    "GRU": ((LayerKind.GRU,), None),
}
"""The frameworks' words for types of layers: which kinds they mean, and which rank of the weight (None: any)."""


def layer_kind(layer: LayerInfo) -> LayerKind:
    """Return the kind of a quantizable layer."""
    if layer.kind is None:
        raise ValueError(f"layer {layer.name!r} has no kind: it cannot be quantized")
    return layer.kind


def is_of_type(layer: LayerInfo, name: str) -> bool:
    """Tell whether a layer is meant by a type's name: its own operator, or any framework's word for it."""
    kinds, rank = TYPE_NAMES.get(name, ((), None))
    return layer.op_type == name or (layer.kind in kinds and rank in (None, _weight_rank(layer)))


def can_be_fused(layer: LayerInfo) -> bool:
    """Tell whether a normalization behind the layer can be folded into it."""
    return layer.kind in (LayerKind.CONV, LayerKind.CONV_TRANSPOSE) or layer.op_type in _FUSED_PRODUCTS


def must_be_symmetric(layer: LayerInfo) -> bool:
    """Tell whether the activation takes no offset: in a three-dimensional convolution."""
    return layer.kind is LayerKind.CONV and _weight_rank(layer) == 5


def takes_channel_wise(layer: LayerInfo) -> bool:
    """Tell whether the weight may have one scale per output channel."""
    rules = KIND_RULES[layer_kind(layer)]
    return rules.per_channel or rules.gates > 0


def takes_balance_factors(layer: LayerInfo) -> bool:
    """Tell whether the activation may be divided by balance factors."""
    return KIND_RULES[layer_kind(layer)].balanced


def takes_ada_round(layer: LayerInfo) -> bool:
    """Tell whether the rounding of the weight may be trained, if the framework can."""
    return layer.kind in (LayerKind.CONV, LayerKind.CONV_TRANSPOSE, *_PRODUCTS)


def takes_general_activation_bits(layer: LayerInfo, num_bits: int) -> bool:
    """Tell whether bits that are set for a whole model or type reach this layer's activation.

    The reference implementation widens to 16 bits only what its hardware computes so.
    """
    if num_bits != 16:
        return num_bits in KIND_RULES[layer_kind(layer)].activation_bits
    return layer.kind in (LayerKind.CONV, LayerKind.CONV_TRANSPOSE, LayerKind.GEMM) and not must_be_symmetric(layer)


def takes_general_weight_bits(layer: LayerInfo, num_bits: int) -> bool:
    """Tell whether bits that are set for a whole model or type reach this layer's weight.

    The reference implementation has 6 and 7 bits for two-dimensional convolutions only.
    """
    if not KIND_RULES[layer_kind(layer)].weighted:
        return num_bits == 8
    if num_bits in (6, 7):
        return layer.kind is LayerKind.CONV and _weight_rank(layer) == 4
    return True


def _weight_rank(layer: LayerInfo) -> int | None:
    return None if layer.weight_shape is None else len(layer.weight_shape)
