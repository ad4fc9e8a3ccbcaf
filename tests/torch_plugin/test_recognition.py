"""The torch plugin tells torch models from everything else, and says what to do with them."""

import sys
from pathlib import Path

import pytest

import twinquant
from twinquant.errors import ModelFileError, UnsupportedModelError
from twinquant.outputs import Flavor
from twinquant.plan import QuantPlan
from twinquant.records import LayerRecord, RecordSet
from twinquant.registry import Match, select_framework
from twinquant_torch.framework import TorchFramework

# Classes named and placed as torch's own are, so that the tests need no torch.
MODULE = type("Module", (), {"__module__": "torch.nn.modules.module"})
EXPORTED = type("ExportedProgram", (), {"__module__": "torch.export.exported_program"})
TENSOR = type("Tensor", (), {"__module__": "torch"})


class UserNet(MODULE):
    pass


@pytest.mark.parametrize("kind", [MODULE, EXPORTED, UserNet])
def test_a_model_object_is_claimed_by_its_type_without_importing_torch(kind):
    before = "torch" in sys.modules
    assert TorchFramework().recognize(kind()) is Match.TYPE
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


@pytest.mark.parametrize("as_file", [False, True])
def test_loading_says_what_is_missing_and_what_to_do(tmp_path, as_file):
    path = tmp_path / "net.pt"
    path.write_bytes(b"PK")
    with pytest.raises(UnsupportedModelError, match=r"only recognizes.*torch\.onnx\.export.*twinquant\[onnx\]"):
        TorchFramework().load(path if as_file else UserNet())


def test_loading_a_missing_file_names_it(tmp_path):
    with pytest.raises(ModelFileError, match="does not exist"):
        TorchFramework().load(tmp_path / "net.pt")


def test_saving_a_module_says_what_to_do_and_writes_nothing(tmp_path):
    record = RecordSet({"conv": LayerRecord("conv")})
    with pytest.raises(UnsupportedModelError, match=r"torch\.onnx\.export"):
        twinquant.save_model(UserNet(), record, tmp_path / "out" / "net")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "call",
    [
        lambda framework: framework.layers(None),
        lambda framework: framework.insert(None, QuantPlan("torch", ()), Flavor.DEPLOY),
        lambda framework: framework.write(None, Path(), "net", Flavor.DEPLOY),
    ],
)
def test_every_later_step_is_refused_alike(call):
    with pytest.raises(UnsupportedModelError, match="only recognizes"):
        call(TorchFramework())
