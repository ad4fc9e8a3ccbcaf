"""The vendor's spelling of the interface."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from twinquant.errors import ArgumentError, RecordLayerError
from twinquant_onnx import amct

TWINS = {"model_deploy_model.onnx", "model_fake_quant_model.onnx"}
RECORD = """record {
  key: "fc"
  value { scale_d: 0.05 offset_d: 3 scale_w: 0.02 offset_w: 0 }
}
"""


@pytest.fixture
def files(tmp_path):
    weight = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w"], ["y"], "fc", transB=1)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        [numpy_helper.from_array(weight, "w")],
    )
    model, record = tmp_path / "modified.onnx", tmp_path / "record.txt"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), model)
    record.write_text(RECORD)
    return str(model), str(record), str(tmp_path / "results" / "model")


def names_beside(save_path):
    return {path.name for path in Path(save_path).parent.iterdir()}


def test_the_vendors_argument_names_and_their_order():
    names = list(inspect.signature(amct.save_model).parameters)
    assert names[:3] == ["modfied_onnx_file", "record_file", "save_path"]


def test_a_call_by_position_writes_both_twins_and_returns_nothing(files):
    assert amct.save_model(*files) is None
    assert names_beside(files[2]) == TWINS


@pytest.mark.parametrize("spelling", ["modfied_onnx_file", "modified_onnx_file"])
def test_both_spellings_of_the_model_are_accepted(files, spelling):
    model, record, save_path = files
    amct.save_model(**{spelling: model}, record_file=record, save_path=save_path)
    assert names_beside(save_path) == TWINS


def test_a_model_that_is_given_twice_is_refused(files):
    model, record, save_path = files
    with pytest.raises(ArgumentError, match="given twice"):
        amct.save_model(model, record, save_path, modified_onnx_file=model)


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_missing_argument_is_named(files, missing):
    given = [None if place == missing else file for place, file in enumerate(files)]
    name = ["modfied_onnx_file", "record_file", "save_path"][missing]
    with pytest.raises(ArgumentError, match=f"missing {name};"):
        amct.save_model(*given)


def test_a_twin_is_not_quantized_again(files):
    model, record, save_path = files
    amct.save_model(model, record, save_path)
    for twin, reason in (("fake_quant", "quantized already"), ("deploy", "is INT8, not a float type")):
        with pytest.raises(RecordLayerError, match=reason):
            amct.save_model(f"{save_path}_{twin}_model.onnx", record, f"{save_path}_again")


def test_a_save_does_without_onnx_runtime(files):
    program = (
        "import sys; from twinquant_onnx import amct; amct.save_model(*sys.argv[1:])\n"
        "print('onnxruntime' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, *files], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
