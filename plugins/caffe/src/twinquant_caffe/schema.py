"""Field numbers of caffe.proto and of the device compiler's, as far as caffemodels are read and written here."""

from __future__ import annotations

__all__ = ["BIAS_TERM", "BLOB_LENGTHS", "BLOB_SHAPE", "CONVOLUTION_PARAM", "INNER_PRODUCT_PARAM", "QUANT_PARAM"]
__all__ += ["DATA", "DOUBLE_DATA", "INT8_DATA", "INT32_DATA", "UINT64_DATA"]
__all__ += ["LAYER_BLOBS", "LAYER_BOTTOM", "LAYER_NAME", "LAYER_PARAM", "LAYER_TOP", "LAYER_TYPE"]
__all__ += ["NET_LAYER", "NET_OLD_LAYERS", "QUANT_OFFSET", "QUANT_SCALE", "SHAPE_DIM"]

NET_OLD_LAYERS, NET_LAYER = 2, 100
"""NetParameter."""

LAYER_NAME, LAYER_TYPE, LAYER_BOTTOM, LAYER_TOP, LAYER_PARAM, LAYER_BLOBS = 1, 2, 3, 4, 6, 7
CONVOLUTION_PARAM, INNER_PRODUCT_PARAM, QUANT_PARAM = 106, 117, 208
"""LayerParameter."""

BIAS_TERM = 2
"""ConvolutionParameter and InnerProductParameter."""

QUANT_SCALE, QUANT_OFFSET = 2, 3
"""QuantParameter."""

BLOB_LENGTHS, BLOB_SHAPE = (1, 2, 3, 4), 7
"""BlobProto: num, channels, height and width of old files, and the shape."""

DATA, DOUBLE_DATA, INT8_DATA, INT32_DATA, UINT64_DATA = 5, 8, 10, 11, 12
"""BlobProto: its values."""

SHAPE_DIM = 1
"""BlobShape."""
