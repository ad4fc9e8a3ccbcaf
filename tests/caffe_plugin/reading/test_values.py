"""Values stay where they are until they are asked for."""

import nets
import numpy as np
import pytest

from twinquant.errors import ModelFileError, UnsupportedModelError
from twinquant_caffe.load import load_net
from twinquant_caffe.net import Blob
from twinquant_caffe.values import BLOCK, ArrayValues

TEXT = 'input: "x" input_shape { dim: 1 }\nlayer { name: "slope" type: "PReLU" bottom: "x" top: "y" }\n'


def test_a_file_that_became_shorter_says_so(tmp_path):
    pair = nets.small_net(tmp_path, TEXT, {"slope": [np.ones(1000, np.float32)]})
    values = load_net(pair).layer("slope").blobs[0].floats
    pair[1].write_bytes(pair[1].read_bytes()[:500])
    with pytest.raises(ModelFileError, match="shorter than it was"):
        values.read(0, 1000)


def test_a_file_that_is_gone_says_so(tmp_path):
    pair = nets.small_net(tmp_path, TEXT, {"slope": [np.ones(10, np.float32)]})
    values = load_net(pair).layer("slope").blobs[0].floats
    pair[1].unlink()
    with pytest.raises(ModelFileError, match="cannot be read any more"):
        b"".join(values.payload())


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 11), (5, 4)])
def test_values_that_are_not_there_cannot_be_read(tmp_path, start, stop):
    values = load_net(nets.small_net(tmp_path, TEXT, {"slope": [np.ones(10, np.float32)]})).layer("slope").blobs[0]
    with pytest.raises(IndexError, match="of 10"):
        values.floats.read(start, stop)


def test_more_values_than_a_block_are_given_in_blocks(tmp_path):
    array = np.random.default_rng(0).standard_normal(BLOCK + 3).astype(np.float32)
    pair = nets.small_net(tmp_path, TEXT, {"slope": [array]})
    for values in (load_net(pair).layer("slope").blobs[0].floats, ArrayValues(array)):
        blocks = [bytes(block) for block in values.payload()]
        assert [len(block) for block in blocks] == [4 * BLOCK, 12]
        assert b"".join(blocks) == array.tobytes()
        assert values.payload_size == array.nbytes


@pytest.mark.parametrize(("dtype", "field"), [("<f4", 5), (">f4", 5), ("<f8", 8), (">f8", 8)])
def test_values_in_memory_are_stored_little_endian(dtype, field):
    array = np.arange(6, dtype=dtype).reshape(2, 3)
    values = ArrayValues(array)
    assert values.field == field
    assert b"".join(values.payload()) == array.astype(array.dtype.newbyteorder("<")).tobytes()
    np.testing.assert_array_equal(values.read(1, 4), [1, 2, 3])


def test_reading_values_in_memory_gives_a_copy():
    array = np.zeros(4, np.float32)
    ArrayValues(array).read(0, 4)[:] = 1
    assert not array.any()


def test_integers_are_no_floats():
    class Integers:
        field, size, payload_size = 10, 1, 1

        def payload(self):
            yield b"\x01"

    with pytest.raises(UnsupportedModelError, match="float weights are needed"):
        _ = Blob((1,), Integers()).floats
