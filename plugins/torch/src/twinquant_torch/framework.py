"""PyTorch for TwinQuant: modules are exported once, and the ONNX plugin does the rest. Torch is imported in methods."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from twinquant.errors import ArgumentError
from twinquant.outputs import Flavor
from twinquant.plan import LayerInfo, QuantPlan
from twinquant.registry import Capability, Framework, LayerWeight, Match, ModelInput, RunBatch, Tap
from twinquant_onnx.framework import OnnxFramework
from twinquant_torch.recognize import recognize
from twinquant_torch.source import TorchModel

if TYPE_CHECKING:
    from twinquant.config import LayerConfig
    from twinquant.records import RecordSet
    from twinquant.verification import VerifyReport
    from twinquant_onnx.graph import OnnxGraph
    from twinquant_onnx.layers import LoadedModel
    from twinquant_torch.graph import TorchGraph

__all__ = ["TorchFramework"]

_ONNX = OnnxFramework()


class TorchFramework(Framework):
    """Reads a `torch.nn.Module` with example inputs or an exported program; writes .onnx files.

    Args:
        options: what `with_options` was given.
    """

    name: ClassVar[str] = "torch"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.CALIBRATE, Capability.VERIFY, Capability.INSPECT}
    )
    weight_algorithms: ClassVar[frozenset[str]] = frozenset({"arq_quantize", "ada_quantize"})
    companion_endings: ClassVar[tuple[str, ...]] = OnnxFramework.companion_endings

    def __init__(self, options: Mapping[str, Any] | None = None) -> None:
        self._options = dict(options or {})

    def recognize(self, source: Any) -> Match:
        """Claim torch's model types, and .pt, .pth and .pt2 files by name."""
        return recognize(source)

    def with_options(self, options: Mapping[str, Any]) -> TorchFramework:
        """Return this framework with the settings of an export.

        Args:
            options: any field of `TorchModel` besides the module, by name: `example_inputs`, `input_names`,
                `output_names`, `dynamic_axes`, `opset`.

        Raises:
            ArgumentError: there is no such option.
        """
        known = [field.name for field in fields(TorchModel) if field.name != "module"]
        for name in options:
            if name not in known:
                raise ArgumentError(f"{name}: the torch framework has no such option; it has {', '.join(known)}")
        return TorchFramework(options)

    def load(self, source: Any) -> TorchGraph:
        """Export the model; its weights stay where they are."""
        from twinquant_torch.load import load

        return load(source, self._options)

    def layers(self, graph: TorchGraph) -> Sequence[LayerInfo]:
        """Describe every node of the exported graph."""
        return graph.layers

    def insert(self, graph: TorchGraph, plan: QuantPlan, flavor: Flavor) -> OnnxGraph:
        """Return one twin, whose weights are quantized when they are written."""
        return _ONNX.insert(graph.model, plan, flavor)

    def write(self, graph: OnnxGraph, folder: Path, prefix: str, flavor: Flavor) -> Sequence[Path]:
        """Write one twin: the .onnx file and its external data files."""
        return _ONNX.write(graph, folder, prefix, flavor)

    def inputs(self, source: Any, graph: TorchGraph) -> Sequence[Path]:
        """List the files that the user's model came from."""
        own = super().inputs(source, graph)
        return tuple(dict.fromkeys((*own, *graph.model.graph.inputs))) if graph.folder is None else own

    def companions(self, model: Path) -> Sequence[str]:
        """List the external data files that an .onnx file refers to."""
        return _ONNX.companions(model)

    def activations(self, graph: TorchGraph, taps: Sequence[Tap], *, threads: int | None = None) -> RunBatch:
        """Run the module itself with hooks where layers are modules, and the exported graph for the rest."""
        from twinquant_torch.activations import tap_graph

        return tap_graph(graph, taps, threads)

    def model_inputs(self, graph: TorchGraph) -> Sequence[ModelInput]:
        """Describe the inputs of the exported graph."""
        from twinquant_torch.activations import describe_inputs

        return describe_inputs(graph)

    def prepare_data(self, graph: TorchGraph, data: Any) -> Any:
        """Take batches as `forward` takes them, like the example inputs."""
        if graph.origin is None:
            return data
        from twinquant_torch.user_data import as_feeds

        return as_feeds(data, graph.origin.layout)

    def fuse(self, graph: TorchGraph, skip: Collection[str]) -> tuple[TorchGraph, Sequence[str]]:
        """Fold BatchNormalization and constant Mul and Add nodes into convolutions."""
        folded: list[str] = []

        def fuse(model: LoadedModel) -> LoadedModel:
            fused, layers = _ONNX.fuse(model, skip)
            folded[:] = layers
            return fused

        fused_graph = graph.edited(fuse)
        return fused_graph, tuple(folded)

    def weight(self, graph: TorchGraph, layer: str, *, recurrence: bool = False) -> LayerWeight:
        """Return a view of a layer's weight."""
        return _ONNX.weight(graph.model, layer, recurrence=recurrence)

    def balance(self, graph: TorchGraph, factors: Mapping[str, Any]) -> TorchGraph:
        """Return a graph whose weights are multiplied when they are read."""
        return graph.edited(lambda model: _ONNX.balance(model, factors))

    def round_weights(
        self,
        graph: TorchGraph,
        settings: Mapping[str, LayerConfig],
        records: RecordSet,
        batches: Iterable[Mapping[str, Any]],
    ) -> TorchGraph:
        """Train the rounding of weights (AdaRound) on what the modules see."""
        from twinquant_torch.activations import calls_of
        from twinquant_torch.rounding import round_weights

        return round_weights(graph, settings, records, lambda: calls_of(graph, batches))

    def write_float(self, graph: TorchGraph, folder: Path, name: str) -> Sequence[Path]:
        """Write the exported model as it is: an .onnx file and its external data files."""
        return _ONNX.write_float(graph.model, folder, name)

    def verify(self, fake_quant: Path, deploy: Path, data: Mapping[str, Any] | None) -> VerifyReport:
        """Compare two twins statically, then layer by layer on data."""
        return _ONNX.verify(fake_quant, deploy, data)

    def inspect(self, source: Path) -> Sequence[tuple[str, str]]:
        """Tell what an .onnx file holds."""
        return _ONNX.inspect(source)
