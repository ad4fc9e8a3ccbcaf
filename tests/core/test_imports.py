"""What `import twinquant` costs and brings."""

from __future__ import annotations

import importlib.metadata
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


def test_the_import_brings_nothing_that_is_not_python_itself():
    program = (
        "import sys; before = set(sys.modules); import twinquant\n"
        "brought = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(brought - set(sys.stdlib_module_names)))"
    )
    assert run(program) == "twinquant"


def test_every_public_name_is_there():
    assert all(getattr(twinquant, name) is not None for name in twinquant.__all__)
    assert set(twinquant.__all__) <= set(dir(twinquant))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'twinquant' has no attribute 'save_modle'"):
        _ = twinquant.save_modle


def test_the_version_is_that_of_the_distribution():
    assert twinquant.__version__ == importlib.metadata.version("twinquant-core")
