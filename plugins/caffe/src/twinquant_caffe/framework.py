"""Caffe for TwinQuant: which module does which step. What runs nets is imported inside the methods."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from twinquant.errors import ArgumentError, UnsupportedModelError
from twinquant.outputs import Flavor
from twinquant.plan import LayerInfo, QuantPlan
from twinquant.records import RecordSet
from twinquant.registry import Capability, Framework, LayerWeight, Match, ModelInput, RunBatch, Tap
from twinquant.registry.float_model import Array
from twinquant_caffe.recognize import recognize

if TYPE_CHECKING:
    from twinquant.verification import VerifyReport
    from twinquant_caffe.net import CaffeNet

__all__ = ["CaffeFramework"]


@dataclass(frozen=True)
class CaffeFramework(Framework):
    """Reads a prototxt with its caffemodel; writes such pairs.

    Attributes:
        fake_quant_style: how the fake-quant twin quantizes: "builtin" in layers of stock Caffe, "python" in Python
            layers, "amct" (experimental) in the vendor's own.
    """

    fake_quant_style: str = "builtin"

    name: ClassVar[str] = "caffe"
    capabilities: ClassVar[frozenset[Capability]] = frozenset(
        {Capability.CALIBRATE, Capability.VERIFY, Capability.CHECK, Capability.INSPECT, Capability.DEMO}
    )

    def recognize(self, source: Any) -> Match:
        """Claim loaded and pycaffe's nets by type, prototxt files that hold layers by content, file names by name."""
        return recognize(source)

    def with_options(self, options: Mapping[str, Any]) -> CaffeFramework:
        """Return this framework with a `fake_quant_style`.

        Raises:
            ArgumentError: it is none of the three, or there are other options.
        """
        from twinquant_caffe.insert import STYLES

        unknown = {name: value for name, value in options.items() if name != "fake_quant_style"}
        if unknown:
            super().with_options(unknown)
        style = options.get("fake_quant_style", self.fake_quant_style)
        if not isinstance(style, str) or style not in STYLES:
            raise ArgumentError(f"fake_quant_style: must be one of {', '.join(map(repr, STYLES))}, got {style!r}")
        return replace(self, fake_quant_style=style)

    def load(self, source: Any) -> CaffeNet:
        """Read the net's structure; weights stay in the caffemodel."""
        from twinquant_caffe.load import load_net
        from twinquant_caffe.net import CaffeNet

        return source if isinstance(source, CaffeNet) else load_net(source)

    def prepare(self, graph: CaffeNet, records: RecordSet) -> CaffeNet:
        """Fold BatchNorm and Scale into all layers whose record does not skip that: records name the fused layers."""
        from twinquant_caffe.prepare import prepare_net

        return prepare_net(graph, records)

    def layers(self, graph: CaffeNet) -> Sequence[LayerInfo]:
        """Describe every layer."""
        from twinquant_caffe.layers import describe_layers

        return describe_layers(graph)

    def insert(self, graph: CaffeNet, plan: QuantPlan, flavor: Flavor) -> CaffeNet:
        """Return one twin, whose weights are quantized when they are written."""
        from twinquant_caffe.insert import build_twin

        return build_twin(graph, plan, flavor, self.fake_quant_style)

    def write(self, graph: CaffeNet, folder: Path, prefix: str, flavor: Flavor) -> Sequence[Path]:
        """Write one twin; a deploy twin that the device compiler would refuse is an error."""
        from twinquant_caffe.twin_files import write_twin

        return write_twin(graph, folder, prefix, flavor)

    def sidecars(self, graph: CaffeNet, plan: QuantPlan, folder: Path, prefix: str) -> Sequence[Path]:
        """Write `quant.json`."""
        from twinquant_caffe.quant_json import format_quant_json

        path = folder / (f"{prefix}_quant.json" if prefix else "quant.json")
        path.write_text(format_quant_json(graph, plan), "utf-8", newline="\n")
        return (path,)

    def inputs(self, source: Any, graph: CaffeNet) -> Sequence[Path]:
        """List the prototxt and the caffemodel."""
        return graph.files

    def activations(self, graph: CaffeNet, taps: Sequence[Tap], *, threads: int | None = None) -> RunBatch:
        """Open the net in OpenCV, as far as the taps need it."""
        from twinquant_caffe.calibrate import tap_net

        return tap_net(graph, taps, threads)

    def model_inputs(self, graph: CaffeNet) -> Sequence[ModelInput]:
        """Describe the inputs; their first axis is the batch, of any length."""
        from twinquant_caffe.calibrate import describe_inputs

        return describe_inputs(graph)

    def fuse(self, graph: CaffeNet, skip: Collection[str]) -> tuple[CaffeNet, Sequence[str]]:
        """Fold BatchNorm and Scale layers into the layers beside them."""
        from twinquant_caffe.fuse import fuse_net

        return fuse_net(graph, skip)

    def weight(self, graph: CaffeNet, layer: str, *, recurrence: bool = False) -> LayerWeight:
        """Return a view of a layer's weight in the caffemodel."""
        from twinquant_caffe.float_weights import layer_weight

        del recurrence  # no recurrent layer is quantized
        return layer_weight(graph, layer)

    def balance(self, graph: CaffeNet, factors: Mapping[str, Array]) -> CaffeNet:
        """Refuse: no record of a Caffe net holds balance factors.

        Raises:
            UnsupportedModelError: always.
        """
        del graph
        raise UnsupportedModelError(
            f"layer {next(iter(factors), '')!r}: Caffe nets cannot be balanced; remove dmq_balancer_param"
        )

    def write_float(self, graph: CaffeNet, folder: Path, name: str) -> Sequence[Path]:
        """Write the net as it is: `name`, and the caffemodel of the same stem."""
        from twinquant_caffe.sources import WEIGHTS
        from twinquant_caffe.write import write_net

        return write_net(graph, folder, name, Path(name).stem + WEIGHTS)

    def verify(self, fake_quant: Path, deploy: Path, data: Mapping[str, Any] | None) -> VerifyReport:
        """Compare two twins statically, then layer by layer in OpenCV and in exact integers."""
        from twinquant_caffe.verify import verify_twins

        return verify_twins(fake_quant, deploy, data)

    def check(self, deploy: Path) -> Sequence[str]:
        """Hold a deploy twin against the rules of the device compiler."""
        from twinquant_caffe.check import check_deploy

        return check_deploy(deploy)

    def inspect(self, source: Path) -> Sequence[tuple[str, str]]:
        """Tell what a prototxt and its caffemodel hold."""
        from twinquant_caffe.inspection import inspect_net

        return inspect_net(source)

    def demo(self, folder: Path) -> Sequence[Sequence[str]]:
        """Quantize the shipped digits network by every algorithm and measure all models on held-out digits."""
        from twinquant_caffe.demo import run_demo

        return run_demo(folder)
