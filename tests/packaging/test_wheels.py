"""What the five wheels hold, what they demand, and that two of them work without the others."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import twinquant

pytestmark = pytest.mark.heavy

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "twinquant": ".",
    "twinquant-core": "core",
    "twinquant-onnx": "plugins/onnx",
    "twinquant-caffe": "plugins/caffe",
    "twinquant-torch": "plugins/torch",
}
PACKAGES = {name: name.replace("-", "_") for name in FOLDERS} | {"twinquant-core": "twinquant"}


@pytest.fixture(scope="module")
def wheels(tmp_path_factory):
    """Build all wheels; returns each one's path by distribution name."""
    pytest.importorskip("hatchling", reason="hatchling builds the wheels; it is in requirements-dev.txt")
    folder = tmp_path_factory.mktemp("wheels")
    sources = [str(ROOT / source) for source in FOLDERS.values()]
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
    ]
    subprocess.run([*command, *sources], check=True, capture_output=True)
    return {re.sub("_", "-", path.name.split("-")[0]): path for path in folder.iterdir()}


def names_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return archive.namelist()


def metadata_of(wheel):
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def requirements_of(wheel):
    """(name, extra or None) of everything that the wheel demands."""
    found = []
    for line in metadata_of(wheel).get_all("Requires-Dist", []):
        extra = re.search(r"extra == ['\"](\w+)['\"]", line)
        found.append((re.match(r"[\w.-]+", line)[0], extra[1] if extra else None))
    return found


def test_all_five_distributions_build_with_one_version(wheels):
    assert set(wheels) == set(FOLDERS)
    assert {metadata_of(wheel)["Version"] for wheel in wheels.values()} == {twinquant.__version__}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_wheel_demands_its_siblings_in_its_own_version(wheels, name):
    demanded = [line.partition(";")[0].strip() for line in metadata_of(wheels[name]).get_all("Requires-Dist", [])]
    siblings = [line for line in demanded if line.startswith("twinquant")]
    assert bool(siblings) == (name != "twinquant-core")
    assert all(line.endswith(f"=={twinquant.__version__}") for line in siblings)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_wheel_demands_python_3_10_and_carries_the_license(wheels, name):
    assert metadata_of(wheels[name])["Requires-Python"] == ">=3.10"
    assert metadata_of(wheels[name])["License-Expression"] == "Apache-2.0"
    assert any(entry.endswith(".dist-info/licenses/LICENSE") for entry in names_in(wheels[name]))


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "twinquant"])
def test_a_wheel_holds_its_own_typed_package_and_nothing_else(wheels, name):
    entries = [entry for entry in names_in(wheels[name]) if ".dist-info/" not in entry]
    assert {entry.partition("/")[0] for entry in entries} == {PACKAGES[name]}
    assert f"{PACKAGES[name]}/py.typed" in entries
    assert not [entry for entry in entries if "/test_" in entry or "__pycache__" in entry or "conftest" in entry]


def test_the_meta_wheel_holds_no_code(wheels):
    assert [entry for entry in names_in(wheels["twinquant"]) if ".dist-info/" not in entry] == []


@pytest.mark.parametrize(
    ("distribution", "files"),
    [
        ("twinquant-core", {"digits/calibration_digits.npz", "digits/held_out_digits.npz"}),
        ("twinquant-onnx", {"demo/digits.onnx", "demo/digits_record.txt"}),
        ("twinquant-caffe", {"demo/digits.prototxt", "demo/digits.caffemodel"}),
    ],
)
def test_the_wheels_carry_the_demo(wheels, distribution, files):
    assert {f"{PACKAGES[distribution]}/{file}" for file in files} <= set(names_in(wheels[distribution]))


def test_the_core_demands_three_packages_only(wheels):
    always = {name for name, extra in requirements_of(wheels["twinquant-core"]) if extra is None}
    assert always == {"numpy", "pluggy", "protobuf"}


def test_the_onnx_extra_brings_neither_torch_nor_caffe(wheels):
    wanted = {("twinquant", "onnx")}
    demanded = set()
    while wanted:
        name, chosen = wanted.pop()
        demanded.add(name)
        if name in wheels:
            wanted |= {(n, None) for n, extra in requirements_of(wheels[name]) if extra in (None, chosen)}
    assert demanded == {
        "twinquant",
        "twinquant-core",
        "twinquant-onnx",
        "numpy",
        "pluggy",
        "protobuf",
        "rich",
        "onnx",
        "onnxruntime",
        "onnxruntime-extensions",
    }


@pytest.mark.parametrize("name", ["onnx", "caffe", "torch"])
def test_each_extra_is_named_like_its_plugins_entry_point(wheels, name):
    assert (f"twinquant-{name}", name) in requirements_of(wheels["twinquant"])
    with zipfile.ZipFile(wheels[f"twinquant-{name}"]) as archive:
        entry_points = next(entry for entry in archive.namelist() if entry.endswith("entry_points.txt"))
        assert f"[twinquant.frameworks]\n{name} = twinquant_{name}.plugin" in archive.read(entry_points).decode()


def test_core_and_onnx_wheels_run_the_demo_without_the_others(wheels, tmp_path):
    target = tmp_path / "installed"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target]
    subprocess.run([*install, wheels["twinquant-core"], wheels["twinquant-onnx"]], check=True, capture_output=True)

    # -S keeps the editable installs of this environment away; its site-packages only lend numpy, onnx and the like.
    third_party = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(target), *sorted(third_party)])}
    program = "import twinquant, twinquant_onnx; print(twinquant.__file__); print(twinquant_onnx.__file__)"
    python = [sys.executable, "-S"]
    shared = {"env": environment, "cwd": tmp_path, "capture_output": True, "text": True, "check": True}
    files = subprocess.run([*python, "-c", program], **shared).stdout.splitlines()
    assert all(Path(file).is_relative_to(target) for file in files)

    demo = subprocess.run([*python, "-m", "twinquant", "demo", "--folder", "demo"], **shared).stdout
    assert "simulated deploy" in demo
    assert (tmp_path / "demo" / "onnx" / "ifmr" / "digits_deploy_model.onnx").exists()
