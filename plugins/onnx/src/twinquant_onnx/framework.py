"""ONNX for TwinQuant: which module does which step. The framework itself is imported inside the methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from twinquant.outputs import Flavor
from twinquant.plan import LayerInfo, QuantPlan
from twinquant.registry import Capability, Framework, Match
from twinquant_onnx.recognize import recognize

if TYPE_CHECKING:
    from twinquant.verification import VerifyReport
    from twinquant_onnx.graph import OnnxGraph
    from twinquant_onnx.layers import LoadedModel

__all__ = ["OnnxFramework"]


class OnnxFramework(Framework):
    """Reads a path, an `onnx.ModelProto` or an `onnx_ir.Model`; writes .onnx files with external data."""

    name: ClassVar[str] = "onnx"
    capabilities: ClassVar[frozenset[Capability]] = frozenset({Capability.VERIFY, Capability.INSPECT, Capability.DEMO})

    companion_endings: ClassVar[tuple[str, ...]] = ("_deploy.external", "_fakequant.external")

    def recognize(self, source: Any) -> Match:
        """Claim .onnx names, files that start like an ONNX model, and the two model types."""
        return recognize(source)

    def load(self, source: Any) -> LoadedModel:
        """Read the model's structure; weights stay where they are."""
        from twinquant_onnx.layers import analyse
        from twinquant_onnx.load import load_model

        return analyse(load_model(source))

    def layers(self, graph: LoadedModel) -> Sequence[LayerInfo]:
        """Describe every node of the main graph."""
        return graph.layers

    def insert(self, graph: LoadedModel, plan: QuantPlan, flavor: Flavor) -> OnnxGraph:
        """Return one twin, whose weights are quantized when they are written."""
        from twinquant_onnx.insert import build_twin

        return build_twin(graph, plan, flavor)

    def write(self, graph: OnnxGraph, folder: Path, prefix: str, flavor: Flavor) -> Sequence[Path]:
        """Write one twin: the .onnx file and its external data files."""
        from twinquant_onnx.write import write_model

        return write_model(graph, folder, prefix, flavor.value)

    def inputs(self, source: Any, graph: LoadedModel) -> Sequence[Path]:
        """List the model file and its external data files."""
        return graph.graph.inputs

    def companions(self, model: Path) -> Sequence[str]:
        """List the external data files that an .onnx file refers to."""
        from twinquant_onnx.references import external_locations

        return external_locations(model)

    def verify(self, fake_quant: Path, deploy: Path, data: Mapping[str, Any] | None) -> VerifyReport:
        """Compare two twins statically, then layer by layer on data."""
        from twinquant_onnx.verify import verify_twins

        return verify_twins(fake_quant, deploy, data)

    def inspect(self, source: Path) -> Sequence[tuple[str, str]]:
        """Tell what an .onnx file holds."""
        from twinquant_onnx.inspection import inspect_model

        return inspect_model(source)

    def demo(self, folder: Path) -> Sequence[tuple[str, str]]:
        """Quantize the shipped digits model and compare accuracies."""
        from twinquant_onnx.demo import run_demo

        return run_demo(folder)
