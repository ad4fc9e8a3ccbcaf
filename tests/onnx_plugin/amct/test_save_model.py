"""The vendor's call for saving: by position, in its own spelling and in the right one."""

from __future__ import annotations

import pytest

from twinquant.errors import ArgumentError, ModelFileError, RecordFileError
from twinquant_onnx import amct


@pytest.fixture
def calibrated(prepared, kit):
    kit.run_all(prepared / "modified.onnx", kit.batches())
    return prepared


@pytest.mark.parametrize("name", ["modfied_onnx_file", "modified_onnx_file"])
def test_both_spellings_of_the_model_are_taken(calibrated, name):
    amct.save_model(
        **{name: str(calibrated / "modified.onnx")},
        record_file=str(calibrated / "record.txt"),
        save_path=str(calibrated / "out" / "m"),
    )
    written = sorted(path.name for path in (calibrated / "out").iterdir() if not path.name.startswith("."))
    assert written == ["m_deploy_model.onnx", "m_fake_quant_model.onnx"]


def test_a_model_that_is_given_twice_is_refused(calibrated):
    with pytest.raises(ArgumentError, match="given twice"):
        amct.save_model("a.onnx", "record.txt", "out/m", modified_onnx_file="a.onnx")


@pytest.mark.parametrize(("arguments", "missing"), [((), "modfied_onnx_file"), (("a.onnx", "r.txt"), "save_path")])
def test_a_missing_argument_is_named(arguments, missing):
    with pytest.raises(ArgumentError, match=missing):
        amct.save_model(*arguments)


def test_a_missing_model_is_refused(calibrated):
    with pytest.raises(ModelFileError, match="there is no file"):
        amct.save_model(calibrated / "none.onnx", calibrated / "record.txt", calibrated / "out" / "m")


def test_a_model_without_operators_needs_no_batches(calibrated):
    """Records of other tools go with plain models."""
    record = (calibrated / "record.txt").read_text()
    (calibrated / "one.txt").write_text(record[record.index('record {\n  key: "fc"') :])
    amct.save_model(calibrated / "model.onnx", calibrated / "one.txt", calibrated / "out" / "m")
    assert (calibrated / "out" / "m_deploy_model.onnx").exists()


def test_a_plain_model_with_an_empty_record_is_refused_as_ever(folder):
    (folder / "record.txt").write_text("")
    with pytest.raises(RecordFileError, match="no record at all"):
        amct.save_model(folder / "model.onnx", folder / "record.txt", folder / "out" / "m")
