"""The Python code of the README does what it says."""

from __future__ import annotations

import re
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = Path(find_spec("twinquant_onnx").origin).parent / "demo"
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A current folder that holds the files that the examples name."""
    for model in ("model.onnx", "modified.onnx"):
        shutil.copy(SHIPPED / "digits.onnx", tmp_path / model)
    shutil.copy(SHIPPED / "digits_record.txt", tmp_path / "record.txt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_readme_has_two_examples():
    assert len(BLOCKS) == 2


@pytest.mark.parametrize("code", BLOCKS, ids=["six lines", "AMCT"])
def test_an_example_of_the_readme_writes_both_twins(code, folder):
    exec(compile(code, "README.md", "exec"), {})
    assert {path.name for path in (folder / "results").glob("*.onnx")} == {
        "model_fake_quant_model.onnx",
        "model_deploy_model.onnx",
    }
