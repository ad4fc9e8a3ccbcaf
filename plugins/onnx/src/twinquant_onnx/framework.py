"""ONNX for TwinQuant: which module does which step. The framework itself is imported inside the methods."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from twinquant.outputs import Flavor
from twinquant.plan import LayerInfo, QuantPlan
from twinquant.registry import Capability, Framework, LayerWeight, Match, ModelInput, RunBatch, Tap
from twinquant_onnx.recognize import recognize

if TYPE_CHECKING:
    from twinquant.verification import VerifyReport
    from twinquant_onnx.graph import OnnxGraph
    from twinquant_onnx.layers import LoadedModel

__all__ = ["OnnxFramework"]


class OnnxFramework(Framework):
    """Reads a path, an `onnx.ModelProto` or an `onnx_ir.Model`; writes .onnx files with external data."""

    name: ClassVar[str] = "onnx"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(Capability) - {Capability.CHECK}
    companion_endings: ClassVar[tuple[str, ...]] = ("_deploy.external", "_fakequant.external")

    def recognize(self, source: Any) -> Match:
        """Claim .onnx names, files that start like an ONNX model, and the two model types."""
        return recognize(source)

    def load(self, source: Any) -> LoadedModel:
        """Read the model's structure; weights stay where they are."""
        from twinquant_onnx.layers import analyse
        from twinquant_onnx.load import load_model
        from twinquant_onnx.modified.removal import without_calibration

        return analyse(without_calibration(load_model(source)))

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

    def activations(self, graph: LoadedModel, taps: Sequence[Tap], *, threads: int | None = None) -> RunBatch:
        """Build one ONNX Runtime session that computes what the taps look at."""
        from twinquant_onnx.calibrate import tap_model

        return tap_model(graph, taps, threads)

    def model_inputs(self, graph: LoadedModel) -> Sequence[ModelInput]:
        """Describe the graph inputs that are no initializers."""
        from twinquant_onnx.calibrate import describe_inputs

        return describe_inputs(graph.graph)

    def fuse(self, graph: LoadedModel, skip: Collection[str]) -> tuple[LoadedModel, Sequence[str]]:
        """Fold BatchNormalization and constant Mul and Add nodes into convolutions."""
        from twinquant_onnx.fuse import fuse_model
        from twinquant_onnx.layers import analyse

        fused, folds = fuse_model(graph.graph, skip=skip)
        return (analyse(fused), [fold.layer for fold in folds]) if folds else (graph, ())

    def weight(self, graph: LoadedModel, layer: str, *, recurrence: bool = False) -> LayerWeight:
        """Return a view of a layer's initializer."""
        from twinquant_onnx.float_weights import layer_weight

        return layer_weight(graph, layer, recurrence=recurrence)

    def balance(self, graph: LoadedModel, factors: Mapping[str, Any]) -> LoadedModel:
        """Return a graph whose weights are multiplied when they are read."""
        from twinquant_onnx.float_weights import balance_weights

        return balance_weights(graph, factors)

    def write_float(self, graph: LoadedModel, folder: Path, name: str) -> Sequence[Path]:
        """Write the model as it is: the .onnx file and its external data files."""
        from twinquant_onnx.write import write_model

        model, *others = write_model(graph.graph, folder, "", "float")
        return model.rename(folder / name), *others

    def verify(self, fake_quant: Path, deploy: Path, data: Mapping[str, Any] | None) -> VerifyReport:
        """Compare two twins statically, then layer by layer on data."""
        from twinquant_onnx.verify import verify_twins

        return verify_twins(fake_quant, deploy, data)

    def inspect(self, source: Path) -> Sequence[tuple[str, str]]:
        """Tell what an .onnx file holds."""
        from twinquant_onnx.inspection import inspect_model

        return inspect_model(source)

    def demo(self, folder: Path) -> Sequence[Sequence[str]]:
        """Quantize the shipped digits model by every algorithm and compare accuracies."""
        from twinquant_onnx.demo import run_demo

        return run_demo(folder)
