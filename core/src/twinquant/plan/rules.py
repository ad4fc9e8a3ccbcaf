"""Which factors a record needs and may have: one table by kind of layer, one by framework."""

from __future__ import annotations

from dataclasses import dataclass

from twinquant.plan.layer import LayerKind

__all__ = ["FRAMEWORK_RULES", "KIND_RULES", "FrameworkRules", "KindRules"]


@dataclass(frozen=True, slots=True)
class KindRules:
    """What a record of one kind of layer holds.

    Attributes:
        weighted: the layer has a weight that is quantized.
        per_channel: there may be one weight scale per output channel, besides one per tensor.
        gates: number of gates of an RNN; then there are scales per gate or per row, and the hidden state has its own.
        balanced: the activation may be divided by balance factors.
        activation_bits: the allowed activation types.
    """

    weighted: bool = True
    per_channel: bool = False
    gates: int = 0
    balanced: bool = True
    activation_bits: tuple[int, ...] = (4, 8, 16)


KIND_RULES = {
    LayerKind.CONV: KindRules(per_channel=True),
    LayerKind.CONV_TRANSPOSE: KindRules(per_channel=True),
    LayerKind.GEMM: KindRules(),
    LayerKind.MATMUL: KindRules(),
    LayerKind.AVERAGE_POOL: KindRules(weighted=False, balanced=False),
    LayerKind.LSTM: KindRules(gates=4, balanced=False, activation_bits=(8, 16)),
    LayerKind.GRU: KindRules(gates=3, balanced=False, activation_bits=(8, 16)),
}


@dataclass(frozen=True, slots=True)
class FrameworkRules:
    """Where one framework's records differ from the others'.

    Attributes:
        zero_shift_allowed: `shift_bit` may be there if all its values are 0.
        pooling_has_weight_factors: a record of an AveragePool holds scale_w = 1 and offset_w = 0; False means that it
            must not have them.
        only_int8: all types are INT8, and there are no balance factors and no RNN fields.
        fused_when_saved: saving a float model folds normalizations into every layer whose record does not skip that.
    """

    zero_shift_allowed: bool = False
    pooling_has_weight_factors: bool = True
    only_int8: bool = False
    fused_when_saved: bool = False


FRAMEWORK_RULES = {
    "caffe": FrameworkRules(
        zero_shift_allowed=True, pooling_has_weight_factors=False, only_int8=True, fused_when_saved=True
    ),
}
"""Frameworks that are not listed follow the defaults."""
