"""The conformance tests of a framework plugin, all in one class to inherit from."""

from __future__ import annotations

from twinquant.testing.calibrating import CalibrationContract
from twinquant.testing.lowering import LoweringContract
from twinquant.testing.recognition import RecognitionContract
from twinquant.testing.saving import SavingContract

__all__ = ["FrameworkContract"]


class FrameworkContract(RecognitionContract, LoweringContract, SavingContract, CalibrationContract):
    """A framework is supported when these tests pass unchanged.

    Inherit, name the framework, and build a tiny model; pytest does the rest:

        class TestToyContract(FrameworkContract):
            layer_names = ("fc1", "fc2")

            def framework(self):
                return ToyFramework()

            def make_source(self, folder):
                path = folder / "net.toy.json"
                path.write_text(...)
                return path

    The plugin must be installed: the tests go through its entry point too.
    """
