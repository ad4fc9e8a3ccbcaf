import pytest

from twinquant.plan import LayerInfo, LayerKind


@pytest.fixture
def layers():
    """A model with one layer of most kinds, a Relu and a Gemm that cannot be quantized, in graph order."""
    return (
        LayerInfo("stem", "Conv", LayerKind.CONV, weight_shape=(8, 3, 3, 3), packed_lengths=(3,)),
        LayerInfo("relu", "Relu"),
        LayerInfo("body", "Conv", LayerKind.CONV, weight_shape=(8, 8, 3, 3), packed_lengths=(8,)),
        LayerInfo("volume", "Conv", LayerKind.CONV, weight_shape=(8, 8, 3, 3, 3), packed_lengths=(8,)),
        LayerInfo("up", "ConvTranspose", LayerKind.CONV_TRANSPOSE, weight_shape=(8, 4, 2, 2), packed_lengths=(8,)),
        LayerInfo("pool", "AveragePool", LayerKind.AVERAGE_POOL),
        LayerInfo("rnn", "LSTM", LayerKind.LSTM, weight_shape=(1, 16, 4), packed_lengths=(4, 4)),
        LayerInfo("fc", "Gemm", LayerKind.GEMM, weight_shape=(8, 10), packed_lengths=(8,)),
        LayerInfo("dynamic", "Gemm", LayerKind.GEMM, refusal="its weight is not constant"),
        LayerInfo("out", "MatMul", LayerKind.MATMUL, weight_shape=(10, 4), packed_lengths=(10,)),
    )
