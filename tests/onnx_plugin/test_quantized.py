import tracemalloc

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from twinquant.errors import ModelContentError, ModelFileError
from twinquant_onnx import quantized
from twinquant_onnx.quantized import Encoding, QuantizedWeight, WeightLayout
from twinquant_onnx.tensors import ArrayBytes, FileRange

SOURCES = {
    onnx.TensorProto.FLOAT: np.float32,
    onnx.TensorProto.FLOAT16: np.float16,
    onnx.TensorProto.DOUBLE: np.float64,
    onnx.TensorProto.BFLOAT16: ml_dtypes.bfloat16,
}

# layout, shape, number of scales
CASES = {
    "conv, one scale": (WeightLayout.OUTPUT_FIRST, (6, 4, 3, 3), 1),
    "conv, a scale per output channel": (WeightLayout.OUTPUT_FIRST, (6, 4, 3, 3), 6),
    "conv of rank 3": (WeightLayout.OUTPUT_FIRST, (5, 2, 7), 5),
    "conv transpose, one scale": (WeightLayout.INPUT_FIRST, (6, 4, 3), 1),
    "conv transpose, one group": (WeightLayout.INPUT_FIRST, (6, 4, 2, 2), 4),
    "conv transpose, two groups": (WeightLayout.INPUT_FIRST, (6, 4, 2, 2), 8),
    "conv transpose, depthwise": (WeightLayout.INPUT_FIRST, (6, 1, 3, 3), 6),
    "conv transpose, depthwise with multiplier": (WeightLayout.INPUT_FIRST, (6, 2, 3, 3), 12),
    "matrix": (WeightLayout.INPUT_FIRST, (8, 5), 1),
    "lstm, a scale per gate": (WeightLayout.RECURRENT, (1, 12, 6), 4),
    "gru, a scale per row": (WeightLayout.RECURRENT, (1, 9, 6), 9),
    "longer than a block": (WeightLayout.OUTPUT_FIRST, (3, 70_002, 1), 3),
    "many blocks of no round size": (WeightLayout.INPUT_FIRST, (302, 701), 1),
    "a block ends inside a channel": (WeightLayout.INPUT_FIRST, (4, 3, 40_001), 6),
    "no element": (WeightLayout.OUTPUT_FIRST, (0, 4, 3), 1),
}


def element_scales(layout, shape, scale):
    if scale.size == 1:
        return np.broadcast_to(scale, shape)
    if layout is WeightLayout.RECURRENT:
        return np.broadcast_to(np.repeat(scale, shape[1] // scale.size)[None, :, None], shape)
    if layout is WeightLayout.OUTPUT_FIRST:
        return np.broadcast_to(scale.reshape(-1, *[1] * (len(shape) - 1)), shape)
    # output channel = group index * (Cout / group) + j
    groups = scale.size // shape[1]
    out = np.empty(shape, np.float32)
    for i in range(shape[0]):
        for j in range(shape[1]):
            out[i, j] = scale[i // (shape[0] // groups) * shape[1] + j]
    return out


def nibbles(q, axis):
    even, odd = (np.take(q, range(start, q.shape[axis], 2), axis) for start in (0, 1))
    return ((even & 15) | (odd << 4)).astype(np.int8)


def flat_nibbles(q):
    tensor = onnx.helper.make_tensor("t", onnx.TensorProto.INT4, q.shape, q.reshape(-1).tolist())
    return np.frombuffer(numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data, np.uint8)


INPUT_AXIS = {WeightLayout.OUTPUT_FIRST: 1, WeightLayout.INPUT_FIRST: 0, WeightLayout.RECURRENT: 2}


def expected(weight, layout, scale, bits, encoding, transpose=False):
    scales = element_scales(layout, weight.shape, scale)
    q = np.clip(np.rint(weight.astype(np.float32) / scales), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1).astype(np.int8)
    if encoding is Encoding.PACKED_INT4:
        q = nibbles(q, INPUT_AXIS[layout])
    if transpose:
        q, scales = q.T, scales.T
    if encoding is Encoding.FLOAT:
        return q.astype(np.float32)
    if encoding is Encoding.DEQUANTIZED:
        return (q.astype(np.float32) * scales).astype(np.float32)
    if encoding is Encoding.ROUNDED:
        return (q.astype(np.float32) * scales).astype(weight.dtype)
    return flat_nibbles(q) if encoding is Encoding.ONNX_INT4 else q


def written(content):
    return b"".join(block.tobytes() for block in content.blocks())


def bits_of(encoding):
    return 4 if encoding in (Encoding.PACKED_INT4, Encoding.ONNX_INT4) else 8


def random_case(layout, shape, scales, source_type=onnx.TensorProto.FLOAT):
    rng = np.random.default_rng(7)
    weight = (rng.standard_normal(shape) * 2).astype(SOURCES[source_type])
    scale = rng.uniform(0.01, 0.4, scales).astype(np.float32)
    return weight, scale


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("case", CASES)
def test_every_layout_in_every_encoding_equals_numpy_on_the_whole_weight(case, encoding):
    layout, shape, scales = CASES[case]
    weight, scale = random_case(layout, shape, scales)
    bits = bits_of(encoding)
    content = QuantizedWeight(
        ArrayBytes(weight), 1, shape, scale, bits, layout=layout, encoding=encoding, label="the weight"
    )
    wanted = expected(weight, layout, scale, bits, encoding)
    assert written(content) == wanted.tobytes()
    assert content.nbytes == wanted.nbytes
    if encoding is not Encoding.ONNX_INT4:
        assert content.dims == wanted.shape


@pytest.mark.parametrize("source_type", SOURCES)
@pytest.mark.parametrize("shape", [(5, 3, 2), (3, 70_001, 1)])
def test_every_float_type_is_widened_to_float32(source_type, shape):
    weight, scale = random_case(WeightLayout.OUTPUT_FIRST, shape, shape[0], source_type)
    content = QuantizedWeight(
        ArrayBytes(weight.view(np.uint16) if weight.dtype.itemsize == 2 else weight),
        source_type,
        shape,
        scale,
        8,
        layout=WeightLayout.OUTPUT_FIRST,
        encoding=Encoding.INT8,
        label="the weight",
    )
    assert written(content) == expected(weight, WeightLayout.OUTPUT_FIRST, scale, 8, Encoding.INT8).tobytes()


@pytest.mark.parametrize("bits", [5, 6, 7, 8])
def test_values_saturate_at_the_range_of_the_bits(bits):
    weight = np.array([[-1e30, -200, -1, 0, 1, 200, 1e30]], np.float32)
    content = QuantizedWeight(
        ArrayBytes(weight),
        1,
        weight.shape,
        np.array([1e-3], np.float32),
        bits,
        layout=WeightLayout.INPUT_FIRST,
        encoding=Encoding.INT8,
        label="the weight",
    )
    low, high = {5: (-16, 15), 6: (-32, 31), 7: (-64, 63), 8: (-128, 127)}[bits]
    assert np.frombuffer(written(content), np.int8).tolist() == [low, low, low, 0, high, high, high]


@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("scales", [1, 77])
@pytest.mark.parametrize("columns", [2, 130, 1000])
@pytest.mark.parametrize("buffer", [1, 77 * 64, 77 * 100, 1 << 24])
def test_a_transposed_weight_equals_the_transposed_array(monkeypatch, buffer, columns, scales, encoding):
    monkeypatch.setattr(quantized, "STRIP_BYTES", buffer)
    weight, scale = random_case(WeightLayout.OUTPUT_FIRST, (77, columns), scales)
    bits = bits_of(encoding)
    content = QuantizedWeight(
        ArrayBytes(weight),
        1,
        weight.shape,
        scale,
        bits,
        layout=WeightLayout.OUTPUT_FIRST,
        encoding=encoding,
        label="the weight",
        transpose=True,
    )
    wanted = expected(weight, WeightLayout.OUTPUT_FIRST, scale, bits, encoding, transpose=True)
    assert written(content) == wanted.tobytes()
    assert content.dims[-1] == 77


def test_a_transposed_weight_with_an_odd_number_of_elements_ends_with_half_a_byte(monkeypatch):
    monkeypatch.setattr(quantized, "STRIP_BYTES", 1)
    weight = np.arange(-7, 8, dtype=np.float32).reshape(3, 5)
    content = QuantizedWeight(
        ArrayBytes(weight),
        1,
        (3, 5),
        np.ones(1, np.float32),
        4,
        layout=WeightLayout.OUTPUT_FIRST,
        encoding=Encoding.ONNX_INT4,
        label="the weight",
        transpose=True,
    )
    assert written(content) == flat_nibbles(weight.T.astype(np.int8)).tobytes()
    assert content.nbytes == 8


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("transpose", [False, True])
def test_a_value_that_is_no_number_is_an_error_that_names_the_weight(bad, transpose):
    weight = np.ones((300, 400), np.float32)
    weight[299, 399] = bad
    content = QuantizedWeight(
        ArrayBytes(weight),
        1,
        weight.shape,
        np.ones(1, np.float32),
        8,
        layout=WeightLayout.OUTPUT_FIRST,
        encoding=Encoding.INT8,
        label="layer 'fc': the weight 'w'",
        transpose=transpose,
    )
    with pytest.raises(ModelContentError, match=r"layer 'fc': the weight 'w' holds NaN or infinity.*remove the layer"):
        written(content)


def test_a_double_beyond_float32_counts_as_infinity():
    content = QuantizedWeight(
        ArrayBytes(np.array([[1e300, 0.0]])),
        onnx.TensorProto.DOUBLE,
        (1, 2),
        np.ones(1, np.float32),
        8,
        layout=WeightLayout.INPUT_FIRST,
        encoding=Encoding.INT8,
        label="the weight",
    )
    with pytest.raises(ModelContentError, match="infinity"):
        written(content)


def test_scales_that_do_not_fit_the_weight_are_refused():
    with pytest.raises(ValueError, match="5 scales do not fit"):
        QuantizedWeight(
            ArrayBytes(np.zeros((4, 3), np.float32)),
            1,
            (4, 3),
            np.ones(5, np.float32),
            8,
            layout=WeightLayout.OUTPUT_FIRST,
            encoding=Encoding.INT8,
            label="the weight",
        )


def test_the_weight_can_be_written_twice_and_its_file_is_closed_in_between(tmp_path):
    weight, scale = random_case(WeightLayout.INPUT_FIRST, (400, 301), 1)
    path = tmp_path / "data.bin"
    path.write_bytes(b"header" + weight.tobytes())
    source = FileRange(path, 6, weight.nbytes)
    content = QuantizedWeight(
        source, 1, weight.shape, scale, 8, layout=WeightLayout.INPUT_FIRST, encoding=Encoding.INT8, label="the weight"
    )
    first = written(content)
    path.rename(tmp_path / "moved.bin")
    with pytest.raises(FileNotFoundError):
        written(content)
    (tmp_path / "moved.bin").rename(path)
    assert written(content) == first == expected(weight, WeightLayout.INPUT_FIRST, scale, 8, Encoding.INT8).tobytes()


def test_a_file_that_became_shorter_is_an_error(tmp_path):
    path = tmp_path / "data.bin"
    path.write_bytes(bytes(100))
    content = QuantizedWeight(
        FileRange(path, 0, 4 * 6 * 6),
        1,
        (6, 6),
        np.ones(1, np.float32),
        8,
        layout=WeightLayout.INPUT_FIRST,
        encoding=Encoding.FLOAT,
        label="the weight",
    )
    with pytest.raises(ModelFileError, match="truncated"):
        written(content)


@pytest.fixture
def traced_peak():
    def measure(action):
        tracemalloc.start()
        try:
            action()
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    return measure


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("encoding", Encoding)
def test_a_large_weight_never_takes_more_memory_than_a_few_blocks(traced_peak, encoding, transpose):
    rows, columns = 3000, 4000

    class Zeros(ArrayBytes):
        def __init__(self):
            self.nbytes = 4 * rows * columns

        def read_into(self, start, out):
            out[:] = 0

    content = QuantizedWeight(
        Zeros(),
        1,
        (rows, columns),
        np.ones(1, np.float32),
        bits_of(encoding),
        layout=WeightLayout.OUTPUT_FIRST,
        encoding=encoding,
        label="the weight",
        transpose=transpose,
    )
    limit = 18e6 if transpose else 3e6
    assert traced_peak(lambda: sum(block.size for block in content.blocks())) < limit
