"""The Caffe plugin tells nets from everything else."""

from pathlib import Path

import pytest

from twinquant.errors import ModelFileError
from twinquant.registry import Match, select_framework
from twinquant_caffe.framework import CaffeFramework
from twinquant_caffe.sources import source_files

NET = 'name: "net"\nlayer {\n  name: "data"\n  type: "Input"\n  top: "data"\n}\n'


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text(NET)
    return path


@pytest.mark.parametrize(
    "text",
    [
        NET,
        NET.replace("layer {", "layer{"),
        'layers {\n  name: "old"\n}',
        '# generated\n\ninput: "data"\ninput_dim: 1\n',
        'name: "n" layer { name: "one line" }',
    ],
)
def test_a_prototxt_with_layers_is_claimed_by_its_content(tmp_path, text):
    path = tmp_path / "net.prototxt"
    path.write_text(text)
    assert CaffeFramework().recognize(path) is Match.CONTENT
    assert CaffeFramework().recognize(str(path)) is Match.CONTENT


def test_another_prototxt_is_claimed_by_its_name_only(tmp_path):
    path = tmp_path / "solver.prototxt"
    path.write_text('net: "net.prototxt"\nbase_lr: 0.01\nlayer_wise: true\n')
    assert CaffeFramework().recognize(path) is Match.NAME


@pytest.mark.parametrize("source", ["net.prototxt", "net.caffemodel", "NET.PROTOTXT", Path("no/such/net.prototxt")])
def test_a_path_that_does_not_exist_is_claimed_by_its_name(source):
    assert CaffeFramework().recognize(source) is Match.NAME


def test_a_pair_is_claimed_in_every_form(net):
    weights = net.with_suffix(".caffemodel")
    weights.write_bytes(b"\x0a\x03net")
    for pair in [(net, weights), [str(net), str(weights)], f"{net},{weights}", f"{net}, {weights}"]:
        assert CaffeFramework().recognize(pair) is Match.CONTENT


def test_a_file_with_a_comma_in_its_name_is_one_file(tmp_path):
    path = tmp_path / "a,b.prototxt"
    path.write_text(NET)
    assert CaffeFramework().recognize(str(path)) is Match.CONTENT
    assert source_files(str(path)) == (path,)


def test_a_pycaffe_net_is_claimed_by_its_type():
    kind = type("Net", (), {"__module__": "caffe._caffe"})
    assert CaffeFramework().recognize(kind()) is Match.TYPE


@pytest.mark.parametrize(
    "source",
    ["net.onnx", "net.pt", "prototxt", "", "a,b", "\0.prototxt.txt", (), ("a", "b"), ("a.prototxt", "b.onnx"), None, 3],
)
def test_everything_else_is_left_alone(source):
    assert CaffeFramework().recognize(source) is Match.NO


@pytest.mark.parametrize("source", ["\0.prototxt", "x" * 5000 + ".prototxt"])
def test_a_name_that_no_file_can_have_does_not_disturb(source):
    assert CaffeFramework().recognize(source) is Match.NAME


def test_a_folder_named_like_a_net_does_not_disturb(tmp_path):
    folder = tmp_path / "net.prototxt"
    folder.mkdir()
    assert CaffeFramework().recognize(folder) is Match.NAME


def test_a_huge_file_is_only_read_at_its_head(tmp_path):
    path = tmp_path / "net.prototxt"
    path.write_text("#" + " " * 100_000 + "\n" + NET)
    assert CaffeFramework().recognize(path) is Match.NAME


def test_the_installed_plugin_is_chosen_for_a_net(net):
    assert select_framework(net).name == "caffe"
    assert select_framework(f"{net},{net.with_suffix('.caffemodel')}").name == "caffe"


def test_loading_a_missing_file_names_it(net):
    weights = net.with_suffix(".caffemodel")
    with pytest.raises(ModelFileError) as caught:
        CaffeFramework().load((net, weights))
    assert repr(str(weights)) in str(caught.value)


def test_the_inputs_of_a_loaded_net_are_both_files(net):
    weights = net.with_suffix(".caffemodel")
    weights.write_bytes(b"\xa2\x06\x06\x0a\x04data")  # a layer of the name "data"
    framework = CaffeFramework()
    for source in (net, f"{net},{weights}", (str(net), weights)):
        assert framework.inputs(source, framework.load(source)) == (net, weights)
