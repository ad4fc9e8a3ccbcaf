"""One file of a net finds the other; what cannot be found is said."""

from pathlib import Path

import nets
import pytest

from twinquant.errors import ArgumentError, ModelFileError
from twinquant_caffe.load import load_net

TEXT = 'input: "x" input_shape { dim: 1 }\nlayer { name: "relu" type: "ReLU" bottom: "x" top: "y" }\n'


@pytest.fixture
def pair(tmp_path):
    return nets.small_net(tmp_path, TEXT)


def test_a_net_is_named_in_many_ways(pair):
    prototxt, weights = pair
    sources = [pair, list(pair), (str(prototxt), weights), f"{prototxt},{weights}", f"{prototxt}, {weights}"]
    sources += [prototxt, str(weights), (weights, prototxt)]
    for source in sources:
        assert load_net(source).files == pair


def test_a_pair_may_have_any_names(pair, tmp_path):
    prototxt, weights = pair[0].rename(tmp_path / "net.pbtxt"), pair[1].rename(tmp_path / "weights.bin")
    assert load_net((prototxt, weights)).layers[0].name == "relu"


@pytest.mark.parametrize(("given", "missing", "kind"), [(0, 1, "caffemodel"), (1, 0, "prototxt")])
def test_a_file_without_its_partner_says_what_was_looked_for_and_what_is_there(pair, tmp_path, given, missing, kind):
    other = pair[missing].rename(tmp_path / f"other{pair[missing].suffix}")
    with pytest.raises(ModelFileError) as caught:
        load_net(pair[given])
    message = str(caught.value)
    assert f"without its {kind}" in message
    assert repr(str(pair[missing])) in message
    assert other.name in message


@pytest.mark.parametrize("missing", [0, 1])
def test_a_missing_file_of_a_pair_is_named(pair, missing):
    pair[missing].unlink()
    with pytest.raises(ModelFileError) as caught:
        load_net(pair)
    assert f"{str(pair[missing])!r} does not exist" in str(caught.value)


def test_a_folder_is_no_file(pair, tmp_path):
    with pytest.raises(ModelFileError, match="is a folder"):
        load_net((pair[0], tmp_path))


def test_a_name_that_no_file_can_have_is_refused():
    with pytest.raises(ModelFileError, match="Caffe file"):
        load_net(("\0.prototxt", "\0.caffemodel"))


@pytest.mark.parametrize("source", [3, None, (), ("a", "b", "c"), Path("net.onnx"), object()])
def test_everything_else_is_refused(source):
    with pytest.raises(ArgumentError):
        load_net(source)
