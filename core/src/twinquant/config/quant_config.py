"""What is quantized how: the configuration that calibration follows."""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["ActivationConfig", "LayerConfig", "QuantConfig", "WeightConfig"]


@dataclass(frozen=True, slots=True)
class ActivationConfig:
    """How the scale and the offset of one layer's activation are found.

    Settings that the algorithm does not use keep their defaults.

    Attributes:
        algorithm: "ifmr", "hfmg", "minmax", "percentile", "entropy" or "mse".
        num_bits: bits of the quantized activation: 4, 8 or 16.
        asymmetric: an offset is found too; False: the offset is 0.
        max_percentile: ifmr and percentile: which of the sorted values counts as the largest, in (0.5, 1].
        min_percentile: ifmr and percentile: the same from the other end.
        search_range: ifmr: the smallest and the largest factor that is tried on the largest value.
        search_step: ifmr: distance of the factors.
        num_of_bins: hfmg: bins of the histogram: 1024, 2048, 4096 or 8192.
    """

    algorithm: str = "ifmr"
    num_bits: int = 8
    asymmetric: bool = True
    max_percentile: float = 0.999999
    min_percentile: float = 0.999999
    search_range: tuple[float, float] = (0.7, 1.3)
    search_step: float = 0.01
    num_of_bins: int = 4096


@dataclass(frozen=True, slots=True)
class WeightConfig:
    """How the scale of one layer's weight is found.

    Attributes:
        algorithm: "arq_quantize" or "ada_quantize".
        num_bits: bits of the quantized weight: 4, 6, 7 or 8.
        channel_wise: one scale per output channel; False: one for the whole weight.
        num_iteration: ada_quantize: training steps.
        reg_param: ada_quantize: weight of the rounding regularization, in (0, 1).
        beta_range: ada_quantize: the regularization's exponent at the start and at the end; it falls.
        warm_start: ada_quantize: share of the steps without regularization, in (0, 1).
    """

    algorithm: str = "arq_quantize"
    num_bits: int = 8
    channel_wise: bool = True
    num_iteration: int = 10000
    reg_param: float = 0.01
    beta_range: tuple[float, float] = (20.0, 2.0)
    warm_start: float = 0.2


@dataclass(frozen=True, slots=True)
class LayerConfig:
    """The settings of one quantizable layer.

    Attributes:
        name: the layer's name.
        quant_enable: whether it is quantized; False: the other settings have no effect.
        activation: how its activation is quantized.
        weight: how its weight is quantized.
        dmq_migration_strength: how much of the activation's spread over its channels moves to the weight, in
            [0.2, 0.8]; None: nothing is balanced.
    """

    name: str
    quant_enable: bool = True
    activation: ActivationConfig = ActivationConfig()
    weight: WeightConfig = WeightConfig()
    dmq_migration_strength: float | None = None


@dataclass(frozen=True, slots=True)
class QuantConfig:
    """What a model's calibration follows.

    Attributes:
        version: of the file format: 1.
        batch_num: how many batches calibration sees.
        activation_offset: whether activations are asymmetric where nothing more specific is set.
        do_fusion: whether BatchNormalization and its likes are folded into the layers before them.
        skip_fusion_layers: layers into which nothing is folded.
        layers: every quantizable layer of the model by name, in graph order.
        fakequant_precision_mode: "DEFAULT" or "FORCE_FP16_QUANT".
    """

    version: int = 1
    batch_num: int = 1
    activation_offset: bool = True
    do_fusion: bool = True
    skip_fusion_layers: tuple[str, ...] = ()
    layers: dict[str, LayerConfig] = field(default_factory=dict)
    fakequant_precision_mode: str = "DEFAULT"
