"""Which sources the ONNX plugin claims, and how strongly."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import helper, numpy_helper

from twinquant.registry.framework import Match
from twinquant_onnx.recognize import recognize


def model() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.zeros(5000, np.float32), "w")
    made = helper.make_model(helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [], [], [weight]))
    made.producer_name, made.doc_string = "someone", "d" * 300
    return made


def test_a_model_file_is_claimed_by_content_whatever_its_suffix(tmp_path):
    for name in ("m.onnx", "m.bin", "m"):
        (tmp_path / name).write_bytes(model().SerializeToString())
        assert recognize(tmp_path / name) is Match.CONTENT
        assert recognize(str(tmp_path / name)) is Match.CONTENT


def test_a_truncated_model_is_still_claimed(tmp_path):
    (tmp_path / "m.bin").write_bytes(model().SerializeToString()[:2000])

    assert recognize(tmp_path / "m.bin") is Match.CONTENT


@pytest.mark.parametrize("name", ["gone.onnx", "GONE.ONNX", "no/such/folder/m.onnx", "a\0b.onnx", "n" * 5000 + ".onnx"])
def test_a_file_that_is_not_there_is_claimed_by_name(name):
    assert recognize(name) is Match.NAME


def test_an_onnx_name_with_other_content_is_claimed_by_name_only(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (tmp_path / "folder.onnx").mkdir()

    assert recognize(tmp_path / "m.onnx") is Match.NAME
    assert recognize(tmp_path / "folder.onnx") is Match.NAME


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    return out.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b'name: "net"\nlayer {\n  type: "Convolution"\n}\n',
        b'ir_version: 8\ngraph { name: "g" }\n',
        b"\x0a\x03net\xa2\x06\x04\x0a\x02ab",
        b"\x12\x04\x0a\x02ab\x1a\x02in",
        b"\x08\x01\x12\x04\x0a\x02ab",
        b"\x08\x08\x08\x08\x3a\x00",
        b"\x08\x08\x3a\x04\x0d\x00\x00\x00",
        b"\x08\x08",
        b"\x08",
        b"",
        pickle.dumps([1, 2]),
        _zip(),
    ],
    ids=[
        *("caffe prototxt", "onnx as text", "caffemodel", "old caffemodel", "tf saved model", "two versions"),
        *("odd graph", "only a version", "one byte", "empty", "pickle", "torch zip"),
    ],
)
def test_other_files_are_not_claimed(content, tmp_path):
    (tmp_path / "m.bin").write_bytes(content)

    assert recognize(tmp_path / "m.bin") is Match.NO


def test_objects_are_claimed_by_type():
    class Mine(onnx_ir.Model):
        pass

    source = onnx_ir.from_proto(model())
    assert recognize(model()) is Match.TYPE
    assert recognize(source) is Match.TYPE
    assert recognize(Mine(source.graph, ir_version=8)) is Match.TYPE


@pytest.mark.parametrize("source", [None, 5, b"m.onnx", ("a.onnx", "b"), onnx.GraphProto(), np.zeros(3), object, type])
def test_other_objects_are_not_claimed(source):
    assert recognize(source) is Match.NO


def test_recognizing_imports_no_framework(tmp_path):
    (tmp_path / "m.bin").write_bytes(model().SerializeToString())
    script = (
        "import sys\nfrom twinquant_onnx.recognize import recognize\n"
        "print(int(recognize(sys.argv[1])), 'onnx' in sys.modules, 'onnx_ir' in sys.modules)"
    )

    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "m.bin")], capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["2", "False", "False"]
