"""What `import twinquant` costs and brings."""

from __future__ import annotations

import importlib.metadata
import statistics
import subprocess
import sys

import pytest

import twinquant

FRAMEWORKS_AND_FRIENDS = ("onnx", "onnx_ir", "onnxruntime", "torch", "caffe", "rich")


def run(program: str) -> str:
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return result.stdout.strip()


@pytest.mark.parametrize("statement", ["import twinquant", "from twinquant import *", "import twinquant.api"])
def test_no_framework_is_imported(statement):
    loaded = run(f"{statement}\nimport sys\nprint(*(name for name in {FRAMEWORKS_AND_FRIENDS} if name in sys.modules))")
    assert loaded == ""


def seconds_to_import(names: str) -> float:
    program = f"import time; start = time.perf_counter()\nimport {names}\nprint(time.perf_counter() - start)"
    return statistics.median(float(run(program)) for _ in range(5))


@pytest.mark.heavy
def test_the_import_takes_at_most_one_and_a_half_times_as_long_as_its_dependencies():
    assert seconds_to_import("twinquant") <= 1.5 * seconds_to_import("numpy, pluggy, google.protobuf")


def test_every_public_name_is_there():
    assert all(getattr(twinquant, name) is not None for name in twinquant.__all__)
    assert set(twinquant.__all__) <= set(dir(twinquant))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'twinquant' has no attribute 'save_modle'"):
        _ = twinquant.save_modle


def test_the_version_is_that_of_the_distribution():
    assert twinquant.__version__ == importlib.metadata.version("twinquant-core")
