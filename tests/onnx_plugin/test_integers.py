import numpy as np
import pytest

from twinquant.errors import ModelContentError
from twinquant_onnx.graph import TensorStore
from twinquant_onnx.integers import IntegerMemory
from twinquant_onnx.quantized import Encoding, QuantizedWeight, WeightLayout
from twinquant_onnx.tensors import ArrayBytes

WEIGHT = np.random.default_rng(3).standard_normal((300, 500), dtype=np.float32)
SCALE = np.array([0.02], np.float32)


class CountedBytes(ArrayBytes):
    reads = 0

    def read_into(self, start, out):
        self.reads += 1
        super().read_into(start, out)


def weight_of(source, memory, encoding=Encoding.INT8, *, scale=SCALE, name="w", transpose=False):
    return QuantizedWeight(
        source,
        1,
        WEIGHT.shape,
        scale,
        8,
        layout=WeightLayout.OUTPUT_FIRST,
        encoding=encoding,
        label="the weight",
        transpose=transpose,
        memory=memory,
        name=name,
    )


def written(content):
    return b"".join(block.tobytes() for block in content.blocks())


def integers(scale=SCALE):
    return np.clip(np.rint(WEIGHT / scale), -128, 127).astype(np.int8)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("second", [Encoding.INT8, Encoding.FLOAT, Encoding.DEQUANTIZED])
@pytest.mark.parametrize("first", [Encoding.INT8, Encoding.FLOAT, Encoding.DEQUANTIZED])
def test_the_second_twin_takes_the_integers_of_the_first_without_reading(first, second, transpose):
    memory, source = IntegerMemory(), CountedBytes(WEIGHT)
    q = integers().T if transpose else integers()
    expected = {
        Encoding.INT8: q,
        Encoding.FLOAT: q.astype(np.float32),
        Encoding.DEQUANTIZED: q.astype(np.float32) * SCALE,
    }
    assert written(weight_of(source, memory, first, transpose=transpose)) == expected[first].tobytes()
    reads = source.reads
    assert written(weight_of(source, memory, second, transpose=transpose)) == expected[second].tobytes()
    assert source.reads == reads > 0


def test_integers_are_given_away_once():
    memory, source = IntegerMemory(), CountedBytes(WEIGHT)
    for _ in range(2):
        written(weight_of(source, memory))
    reads = source.reads
    assert written(weight_of(source, memory)) == integers().tobytes()
    assert source.reads > reads


def test_another_scale_or_another_weight_is_computed_anew():
    memory = IntegerMemory()
    written(weight_of(ArrayBytes(WEIGHT), memory))
    wider = np.array([0.04], np.float32)
    assert written(weight_of(ArrayBytes(WEIGHT), memory, scale=wider)) == integers(wider).tobytes()
    negative = weight_of(ArrayBytes(-WEIGHT), memory, name="v")
    assert written(negative) == np.clip(np.rint(-WEIGHT / SCALE), -128, 127).astype(np.int8).tobytes()


def test_what_does_not_fit_is_computed_twice():
    memory, source = IntegerMemory(WEIGHT.size - 1), CountedBytes(WEIGHT)
    first = written(weight_of(source, memory))
    reads = source.reads
    assert written(weight_of(source, memory)) == first
    assert source.reads == 2 * reads


def test_taking_integers_makes_room_for_others():
    memory = IntegerMemory(WEIGHT.size)
    written(weight_of(ArrayBytes(WEIGHT), memory))
    assert not memory.has_room(1)
    written(weight_of(ArrayBytes(WEIGHT), memory))
    assert memory.has_room(WEIGHT.size)


@pytest.mark.parametrize("transpose", [False, True])
def test_nothing_is_kept_of_a_weight_that_failed_or_was_not_written_to_its_end(transpose):
    memory = IntegerMemory()
    broken = WEIGHT.copy()
    broken[-1, -1] = np.nan
    with pytest.raises(ModelContentError):
        written(weight_of(ArrayBytes(broken), memory, transpose=transpose))
    unfinished = weight_of(ArrayBytes(broken[::-1]), memory, transpose=transpose).blocks()
    with pytest.raises(ModelContentError):
        next(unfinished)
    begun = weight_of(ArrayBytes(WEIGHT), memory, transpose=transpose).blocks()
    next(begun)
    begun.close()
    assert memory.has_room(160 << 20)


def test_all_copies_of_a_store_share_one_memory():
    store = TensorStore()
    assert store.copy().integers is store.copy().integers
