"""HOW NUMBERS ARE ROUNDED AND PACKED: arrays in, arrays out. No other place rounds, saturates or packs."""

from twinquant.numerics.activation import quantize_activation, reciprocal_scale
from twinquant.numerics.bias import BiasRangeError, quantize_bias
from twinquant.numerics.bits import integer_range, storage_dtype
from twinquant.numerics.blocks import BLOCK_ELEMENTS, rectangular_blocks
from twinquant.numerics.dequant import dequant_scale, float16_scale, pack_dequant_parameter, unpack_dequant_parameter
from twinquant.numerics.int4 import pack_int4, pack_int4_along, unpack_int4, unpack_int4_along
from twinquant.numerics.ranges import (
    SMALLEST_SCALE,
    activation_offset,
    activation_scale,
    clipped_grid_errors,
    symmetric_scale,
)
from twinquant.numerics.weight import quantize_weight, round_weight_in_place, scale_for_shape

__all__ = [
    "BLOCK_ELEMENTS",
    "SMALLEST_SCALE",
    "BiasRangeError",
    "activation_offset",
    "activation_scale",
    "clipped_grid_errors",
    "dequant_scale",
    "float16_scale",
    "integer_range",
    "pack_dequant_parameter",
    "pack_int4",
    "pack_int4_along",
    "quantize_activation",
    "quantize_bias",
    "quantize_weight",
    "reciprocal_scale",
    "rectangular_blocks",
    "round_weight_in_place",
    "scale_for_shape",
    "storage_dtype",
    "symmetric_scale",
    "unpack_dequant_parameter",
    "unpack_int4",
    "unpack_int4_along",
]
