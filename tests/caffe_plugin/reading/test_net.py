"""Layers are connected by versions of blobs, and the TEST phase is what is loaded."""

import nets
import numpy as np
import pytest

from twinquant.errors import ModelFileError
from twinquant_caffe.load import load_net
from twinquant_caffe.net import BlobVersion, Layer
from twinquant_caffe.prototxt import Message

HEAD = 'input: "data" input_shape { dim: 1 dim: 3 dim: 8 dim: 8 }\n'


def layer(name, kind, bottoms="", tops="", rest=""):
    blobs = "".join(f' bottom: "{blob}"' for blob in bottoms.split()) + "".join(
        f' top: "{blob}"' for blob in tops.split()
    )
    return f'layer {{ name: "{name}" type: "{kind}"{blobs} {rest} }}\n'


def load(folder, text, blobs=None):
    return load_net(nets.small_net(folder, text, blobs))


def versions(found):
    return [str(version) for version in found]


def test_in_place_layers_write_new_versions_of_a_blob(tmp_path):
    text = (
        HEAD
        + layer("split", "Power", "data", "x")
        + layer("relu", "ReLU", "x", "x")
        + layer("drop", "Dropout", "x", "x")
        + layer("sum", "Eltwise", "x data", "y")
    )
    net = load(tmp_path, text)
    assert versions(net.layer("relu").reads) == ["x"]
    assert versions(net.layer("relu").writes) == ["x:1"]
    assert versions(net.layer("drop").writes) == ["x:2"]
    assert versions(net.layer("sum").reads) == ["x:2", "data"]
    assert versions(net.outputs) == ["y"]
    assert [reader.name for reader in net.readers(BlobVersion("x", 1))] == ["drop"]


def test_an_input_may_be_written_in_place(tmp_path):
    net = load(tmp_path, HEAD + layer("relu", "ReLU", "data", "data"))
    assert versions(net.layer("relu").reads) == ["data"]
    assert versions(net.outputs) == ["data:1"]


@pytest.mark.parametrize(
    "head",
    [
        'input: "a" input_dim: 1 input_dim: 3 input_dim: 4 input_dim: 5\n'
        'input: "b" input_dim: 1 input_dim: 1 input_dim: 2 input_dim: 2\n',
        'input: "a" input: "b" input_shape { dim: 1 dim: 3 dim: 4 dim: 5 } input_shape { dim: [1, 1, 2, 2] }\n',
        layer("in", "Input", "", "a b", "input_param { shape { dim: [1, 3, 4, 5] } shape { dim: [1, 1, 2, 2] } }"),
        layer("a", "Input", "", "a", "input_param { shape { dim: [1, 3, 4, 5] } }")
        + layer("b", "Input", "", "b", "input_param { shape { dim: [1, 1, 2, 2] } }"),
    ],
)
def test_every_kind_of_input_head_tells_what_has_to_be_fed(tmp_path, head):
    net = load(tmp_path, head + layer("flat", "Flatten", "a", "c") + layer("relu", "ReLU", "b", "d"))
    assert net.inputs == (("a", (1, 3, 4, 5)), ("b", (1, 1, 2, 2)))
    assert versions(net.outputs) == ["c", "d"]


def test_one_shape_of_an_input_layer_serves_all_its_tops(tmp_path):
    net = load(tmp_path, layer("in", "Input", "", "a b", "input_param { shape { dim: 2 } }"))
    assert net.inputs == (("a", (2,)), ("b", (2,)))


def test_an_input_without_a_shape_has_an_empty_one(tmp_path):
    assert load(tmp_path, 'input: "a"\n' + layer("relu", "ReLU", "a", "b")).inputs == (("a", ()),)


@pytest.mark.parametrize(
    ("head", "problem"),
    [
        ('input: "a" input_dim: 1 input_dim: 3', "1 inputs and 2 input_dim values"),
        ('input: "a" input: "b" input_shape { dim: 1 }', "2 inputs and 1 input_shape"),
        ('input: "a" input_dim: [1, 1, 1, 1] input_shape { dim: 1 }', "both input_dim and input_shape"),
        (layer("in", "Input", "", "a b c", "input_param { shape { dim: 1 } shape { dim: 1 } }"), "3 tops and 2 shapes"),
    ],
)
def test_input_heads_that_contradict_themselves_are_refused(tmp_path, head, problem):
    with pytest.raises(ModelFileError, match=problem):
        load(tmp_path, head + "\n" + layer("relu", "ReLU", "a", "o"))


def test_a_bottom_that_nobody_writes_names_layer_and_blob(tmp_path):
    with pytest.raises(ModelFileError, match=r"layer 'relu' reads the blob 'nothing'"):
        load(tmp_path, HEAD + layer("relu", "ReLU", "nothing", "y"))


def test_a_bottom_that_is_written_later_is_refused(tmp_path):
    with pytest.raises(ModelFileError, match=r"layer 'a' reads the blob 'y', which no layer before it writes"):
        load(tmp_path, HEAD + layer("a", "ReLU", "y", "z") + layer("b", "ReLU", "data", "y"))


def test_two_writers_of_a_blob_are_both_named(tmp_path):
    text = HEAD + layer("a", "ReLU", "data", "y") + layer("b", "TanH", "data", "y")
    with pytest.raises(ModelFileError, match=r"layer 'b' writes the blob 'y', which layer 'a' writes too"):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("rules", "taken"),
    [
        ("", True),
        ("include { phase: TRAIN }", False),
        ("include { phase: TEST }", True),
        ("include { phase: 1 }", True),
        ("include { phase: TRAIN } include { phase: TEST }", True),
        ("exclude { phase: TEST }", False),
        ("exclude { phase: TRAIN }", True),
        ('include { stage: "deploy" }', False),
        ('include { not_stage: "deploy" }', True),
        ('exclude { stage: "deploy" }', True),
        ("include { min_level: 1 }", False),
        ("include { max_level: 0 }", True),
        ("include { }", True),
    ],
)
def test_the_rules_of_phases_are_those_of_caffe(tmp_path, rules, taken):
    net = load(tmp_path, HEAD + layer("relu", "ReLU", "data", "y", rules) + layer("end", "TanH", "data", "z"))
    assert [found.name for found in net.layers] == ["relu"] * taken + ["end"]


def test_the_state_of_the_net_gives_level_and_stages(tmp_path):
    state = 'state { level: 2 stage: "deploy" }\n'
    text = HEAD + state + layer("a", "ReLU", "data", "a", 'include { stage: "deploy" min_level: 2 }')
    assert [found.name for found in load(tmp_path, text).layers] == ["a"]


def test_the_test_variant_of_a_layer_is_taken(tmp_path):
    text = (
        layer("data", "Data", "", "data label", "include { phase: TRAIN }")
        + layer("data", "Input", "", "data", "include { phase: TEST } input_param { shape { dim: 1 dim: 3 } }")
        + layer("relu", "ReLU", "data", "y")
        + layer("loss", "SoftmaxWithLoss", "y label", "loss", "include { phase: TRAIN }")
    )
    net = load(tmp_path, text)
    assert [found.type for found in net.layers] == ["Input", "ReLU"]
    assert net.inputs == (("data", (1, 3)),)


def test_other_layers_are_connected_anew(tmp_path):
    net = load(tmp_path, HEAD + layer("relu", "ReLU", "data", "x") + layer("end", "TanH", "x", "y"))
    new = Layer("new", "Power", ("x",), ("x",), Message())
    changed = net.with_layers((net.layers[0], new, net.layers[1]))
    assert versions(changed.layer("end").reads) == ["x:1"]
    assert versions(net.layer("end").reads) == ["x"]
    assert changed.files == net.files
    with pytest.raises(ModelFileError, match="reads the blob 'x'"):
        net.with_layers(net.layers[1:])


def test_a_layer_stands_for_itself_until_others_are_fused_into_it(tmp_path):
    net = load(tmp_path, HEAD + layer("relu", "ReLU", "data", "x"))
    assert net.original_names("relu") == ("relu",)


def test_asking_for_a_layer_that_is_not_there_is_a_key_error(tmp_path):
    with pytest.raises(KeyError, match="none"):
        load(tmp_path, HEAD + layer("relu", "ReLU", "data", "x")).layer("none")


def test_layers_without_weights_may_share_a_name(tmp_path):
    net = load(tmp_path, HEAD + layer("relu", "ReLU", "data", "x") + layer("relu", "ReLU", "x", "y"))
    assert [str(found.writes[0]) for found in net.layers] == ["x", "y"]


@pytest.mark.parametrize("kind", ["Pooling", "InnerProduct"])
def test_layers_whose_name_has_to_tell_them_apart_may_not_share_it(tmp_path, kind):
    rest = (
        "inner_product_param { num_output: 2 bias_term: false }"
        if kind == "InnerProduct"
        else "pooling_param { kernel_size: 1 }"
    )
    text = HEAD + layer("same", kind, "data", "x", rest) + layer("same", "ReLU", "x", "y")
    blobs = {"same": [np.ones((2, 192), np.float32)]} if kind == "InnerProduct" else {}
    with pytest.raises(ModelFileError, match=rf"two layers have the name 'same' \({kind} and ReLU\)"):
        load(tmp_path, text, blobs)
