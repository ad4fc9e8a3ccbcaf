"""Finding plugins, listing them and choosing one imports no framework."""

import json
import subprocess
import sys

import pytest

FRAMEWORKS = ("onnx", "onnx_ir", "onnxruntime", "torch", "caffe", "tensorflow", "cv2")


def imported_by(code):
    """Return which frameworks a new process has imported after running the code."""
    report = f"\nimport json, sys; print(json.dumps([name for name in {FRAMEWORKS!r} if name in sys.modules]))"
    result = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def test_the_check_itself_sees_an_import():
    assert "onnx" in imported_by("import onnx")


@pytest.mark.parametrize("plugin", ["twinquant_onnx", "twinquant_caffe", "twinquant_torch", "twinquant_toy"])
def test_a_plugin_module_imports_no_framework(plugin):
    assert imported_by(f"import {plugin}.plugin") == []


def test_listing_the_plugins_imports_no_framework():
    assert imported_by("from twinquant.registry import plugin_states; plugin_states()") == []


@pytest.mark.parametrize("source", ["net.onnx", "net.prototxt", "net.pt", "net.toy.json"])
def test_choosing_a_framework_by_a_path_imports_none(source):
    assert imported_by(f"from twinquant.registry import select_framework; select_framework({source!r})") == []


def test_explaining_an_absent_plugin_imports_no_framework():
    code = (
        "from twinquant.registry import Registry, select_framework\n"
        "Fake = type('Fake', (), {'__module__': 'torch.nn'})\n"
        "try:\n    select_framework(Fake(), registry=Registry())\n"
        "except Exception as error:\n    assert 'twinquant[torch]' in str(error), error\n"
        "else:\n    raise SystemExit('claimed')\n"
    )
    assert imported_by(code) == []
