"""The torch plugin tells torch models from everything else, without importing torch."""

import sys
from pathlib import Path

import pytest

from twinquant.errors import ArgumentError, ModelFileError, UnsupportedModelError
from twinquant.registry import Match, select_framework
from twinquant_torch import TorchModel
from twinquant_torch.framework import TorchFramework

# Classes named and placed as torch's own are, so that the tests need no torch.
MODULE = type("Module", (), {"__module__": "torch.nn.modules.module"})
EXPORTED = type("ExportedProgram", (), {"__module__": "torch.export.exported_program"})
TENSOR = type("Tensor", (), {"__module__": "torch"})


class UserNet(MODULE):
    pass


@pytest.mark.parametrize("source", [MODULE(), EXPORTED(), UserNet(), TorchModel(UserNet(), None)])
def test_a_model_object_is_claimed_by_its_type_without_importing_torch(source):
    before = "torch" in sys.modules
    assert TorchFramework().recognize(source) is Match.TYPE
    assert ("torch" in sys.modules) == before


@pytest.mark.parametrize("source", ["net.pt", "net.pth", "net.pt2", "NET.PT", Path("no/such/net.pt")])
def test_a_file_is_claimed_by_its_name(source):
    assert TorchFramework().recognize(source) is Match.NAME


@pytest.mark.parametrize(
    "source", ["net.onnx", "net.ptx", "pt", "", ("a.pt", "b.pt"), None, 3, TENSOR(), UserNet, type("Module", (), {})()]
)
def test_everything_else_is_left_alone(source):
    assert TorchFramework().recognize(source) is Match.NO


def test_the_installed_plugin_is_chosen_for_a_module():
    assert select_framework(UserNet()).name == "torch"


def test_an_unknown_option_is_refused_with_those_that_exist():
    with pytest.raises(ArgumentError, match=r"example_input: .*no such option.*example_inputs"):
        TorchFramework().with_options({"example_input": 1})


def test_loading_a_missing_file_names_it(tmp_path):
    pytest.importorskip("torch")
    with pytest.raises(ModelFileError, match="does not exist"):
        TorchFramework().load(tmp_path / "net.pt")


def test_a_pickled_module_is_not_opened(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "net.pt")
    with pytest.raises(UnsupportedModelError, match=r"pickle.*load the module yourself.*example_inputs"):
        TorchFramework().load(tmp_path / "net.pt")


def test_a_damaged_exported_program_is_a_model_file_error(tmp_path):
    pytest.importorskip("torch")
    (tmp_path / "net.pt2").write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(ModelFileError, match="cannot be read as an exported program"):
        TorchFramework().load(tmp_path / "net.pt2")
