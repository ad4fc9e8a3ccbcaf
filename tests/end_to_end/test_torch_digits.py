"""The digits network as a torch module: trained, quantized and measured by the script of the example."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "examples" / "digits" / "train.py"


@pytest.mark.heavy
def test_the_twins_of_the_trained_module_agree_and_read_as_many_digits(tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("sklearn")
    done = subprocess.run([sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=True)
    accuracy = {what: float(share) for what, share in re.findall(r"^([\w -]+): +([\d.]+)%$", done.stdout, re.MULTILINE)}
    assert accuracy["float module"] > 97
    assert accuracy["fake-quant twin"] > accuracy["float module"] - 1
    assert "the twins agree: True" in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["results"]
