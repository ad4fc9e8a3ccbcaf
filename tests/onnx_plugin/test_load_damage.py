"""Files that are no model, or a damaged one: every one of them ends in an error that says what is wrong."""

from __future__ import annotations

import gzip
import os
import pickle
import random

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from twinquant.errors import ModelFileError
from twinquant_onnx.load import load_model

VALUES = np.arange(2000, dtype=np.float32)


def small_model(*tensors: TensorProto) -> onnx.ModelProto:
    tensors = tensors or (numpy_helper.from_array(VALUES, "w"), numpy_helper.from_array(VALUES[:5], "v"))
    body = helper.make_graph([helper.make_node("Neg", ["w"], ["z"])], "b", [], [onnx.ValueInfoProto(name="z")])
    nodes = [
        helper.make_node("Constant", [], ["c"], name="const", value=numpy_helper.from_array(VALUES + 1)),
        helper.make_node("If", ["x"], ["y"], name="branch", then_branch=body, else_branch=body),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.BOOL, [])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2000])
    return helper.make_model(helper.make_graph(nodes, "g", [x], [y], list(tensors)))


def refusal(source) -> str:
    with pytest.raises(ModelFileError) as caught:
        load_model(source)
    return str(caught.value)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n", "git lfs pull"),
        (b'ir_version: 8\ngraph { name: "g" }\n', "text file"),
        (b'{"irVersion": "8"}', "text file"),
        (b"PK\x03\x04" + bytes(30), "zip archive"),
        (pickle.dumps({"state": 1}, protocol=2), "pickle"),
        (gzip.compress(b"model", mtime=0), "gzip"),
        (b"\x18\0\0\0ORTM" + bytes(20), "ONNX Runtime"),
        (bytes(64), "truncated, damaged or of another format"),
        (b"\x08\x08", "holds no graph"),
        (b"\x0a\x03net", "holds no graph"),
    ],
    ids=["empty", "lfs", "prototxt", "json", "zip", "pickle", "gzip", "ort", "zeros", "no graph", "caffemodel"],
)
def test_what_is_no_model_is_an_error_that_says_what_it_is(content, reason, tmp_path):
    (tmp_path / "m.onnx").write_bytes(content)

    message = refusal(tmp_path / "m.onnx")

    assert reason in message
    assert "m.onnx" in message


def test_a_missing_file_is_an_error_that_suggests_similar_names(tmp_path):
    for name in ("resnet50.onnx", "readme.txt"):
        (tmp_path / name).write_bytes(b"")

    assert "did you mean 'resnet50.onnx'?" in refusal(tmp_path / "resnet5.onnx")
    assert "did you mean" not in refusal(tmp_path / "zzz")


def test_a_missing_folder_is_named(tmp_path):
    assert f"the folder {str(tmp_path / 'gone')!r} does not exist" in refusal(tmp_path / "gone" / "m.onnx")


def test_a_folder_a_pipe_and_an_impossible_name_are_errors(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")

    assert "is a folder" in refusal(tmp_path)
    assert "not a regular file" in refusal(tmp_path / "pipe.onnx")
    assert "cannot be read" in refusal("a\0b.onnx")
    assert "cannot be read" in refusal("n" * 5000)


def test_a_message_without_a_graph_is_an_error():
    assert "no graph" in refusal(onnx.ModelProto(ir_version=8))


@pytest.mark.parametrize(
    "tensor, reason",
    [
        (TensorProto(name="w", data_type=1, dims=[3], raw_data=bytes(8)), "need 12 bytes, but it holds 8"),
        (TensorProto(name="w", data_type=1, dims=[3000], raw_data=bytes(8000)), "need 12000 bytes, but it holds 8000"),
        (TensorProto(name="w", data_type=1, dims=[3], raw_data=bytes(8000)), "need 12 bytes, but it holds 8000"),
        (TensorProto(name="w", data_type=22, dims=[3], raw_data=bytes(3)), "need 2 bytes, but it holds 3"),
        (
            TensorProto(name="w", data_type=1, dims=[3000], float_data=[0.5] * 2000),
            "need 12000 bytes, but it holds 8000",
        ),
        (TensorProto(name="w", data_type=7, dims=[2, 2], int64_data=[1, 2, 3]), "need 4 values, but it holds 3"),
        (TensorProto(name="w", data_type=10, dims=[2], int32_data=[1]), "need 2 values, but it holds 1"),
        (TensorProto(name="w", data_type=14, dims=[2], float_data=[1, 2]), "need 4 values, but it holds 2"),
        (TensorProto(name="w", data_type=8, dims=[2], string_data=[b"a"]), "need 2 values, but it holds 1"),
        (TensorProto(name="w", data_type=1, dims=[3]), "need 3 values, but it holds 0"),
        (TensorProto(name="w", data_type=1, dims=[-3], raw_data=bytes(12)), "must not be negative"),
    ],
)
@pytest.mark.parametrize("kind", ["file", "message"])
def test_a_tensor_that_does_not_fit_its_dims_is_named(tensor, reason, kind, tmp_path):
    whole = small_model(tensor)
    (tmp_path / "m.onnx").write_bytes(whole.SerializeToString())

    message = refusal(tmp_path / "m.onnx" if kind == "file" else whole)

    assert "tensor 'w'" in message
    assert reason in message


@pytest.mark.parametrize("fraction", [0.01, 0.3, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_an_error_that_says_so(fraction, tmp_path):
    data = small_model().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data[: int(len(data) * fraction)])

    assert "truncated" in refusal(tmp_path / "m.onnx")


def test_a_name_that_is_no_text_is_an_error(tmp_path):
    data = small_model().SerializeToString()
    (tmp_path / "m.onnx").write_bytes(data.replace(b"branch", b"br\xff\xfech"))

    assert "not UTF-8" in refusal(tmp_path / "m.onnx")


@pytest.mark.parametrize("seed", range(10))
def test_random_damage_never_ends_in_another_error(seed, tmp_path):
    choice, data = random.Random(seed), small_model().SerializeToString()
    heads = [i for i in range(len(data)) if not 100 < i % 8000 < 7900]
    path = tmp_path / "m.onnx"
    for _ in range(60):
        damaged = bytearray(data[: choice.randrange(len(data))] if choice.random() < 0.3 else data)
        for _ in range(choice.randrange(4)):
            place = choice.choice(heads)
            if place < len(damaged):
                damaged[place] = choice.randrange(256)
        path.write_bytes(damaged)
        try:
            graph = load_model(path)
        except ModelFileError:
            continue
        for entry in graph.store.entries:
            assert sum(block.size for block in entry.content.blocks()) == entry.content.nbytes
