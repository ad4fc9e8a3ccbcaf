"""What of one twin corresponds to what of the other."""

from __future__ import annotations

from dataclasses import dataclass, field

import onnx

from twinquant_onnx.verify.chains import Chain
from twinquant_onnx.verify.deploy_layers import DeployLayer
from twinquant_onnx.verify.findings import Findings
from twinquant_onnx.verify.rnn import RnnPair
from twinquant_onnx.verify.twin import Twin, without_suffix

__all__ = ["FakeDequant", "Pairing"]


@dataclass(frozen=True, slots=True)
class FakeDequant:
    """What stands for an AscendDequant in the fake-quant twin.

    Attributes:
        scale: the tensor that holds the scale.
        product: the output of the Mul by it.
    """

    scale: str
    product: str


@dataclass(slots=True)
class Pairing:
    """How two twins correspond, as far as that is known yet.

    Attributes:
        deploy: the deploy twin.
        fake: the fake-quant twin.
        layers: the quantized layers of the deploy twin, in graph order.
        findings: what disagrees.
        rnns: the recurrent layers, by position in the deploy twin.
        input_scales: how many of a recurrent layer's dequantization parameters are the input's, by its position.
        chains: the chain that stands for an AscendQuant, by the AscendQuant's position.
        dequants: what stands for an AscendDequant, by its position.
        counterparts: position of a deploy node's counterpart in the fake-quant twin.
        tensors: what the deploy twin's tensors are called in the fake-quant twin.
        known: positions of the fake-quant twin's nodes that belong to something in the deploy twin.
        inserted: nodes that only the fake-quant twin has, by name without numeric suffix.
    """

    deploy: Twin
    fake: Twin
    layers: list[DeployLayer]
    findings: Findings
    rnns: dict[int, RnnPair] = field(default_factory=dict)
    input_scales: dict[int, int] = field(default_factory=dict)
    chains: dict[int, Chain] = field(default_factory=dict)
    dequants: dict[int, FakeDequant] = field(default_factory=dict)
    counterparts: dict[int, int] = field(default_factory=dict)
    tensors: dict[str, str] = field(default_factory=dict)
    known: set[int] = field(default_factory=set)
    inserted: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, index in self.fake.by_name.items():
            if name not in self.deploy.by_name:
                for key in {name, without_suffix(name)}:
                    self.inserted.setdefault(key, []).append(index)

    def find_inserted(self, name: str) -> int | None:
        """Find a node that only the fake-quant twin has by its name, which may carry a numeric suffix."""
        exact = self.fake.by_name.get(name)
        if exact is not None and name not in self.deploy.by_name:
            return exact
        found = self.inserted.get(name, ())
        return found[0] if len(found) == 1 else None

    def take(self, index: int) -> onnx.NodeProto:
        """Return a node of the fake-quant twin and note that it and its Constants belong to something."""
        node = self.fake.node(index)
        self.known.add(index)
        for tensor in node.input:
            maker = self.fake.producer(tensor)
            if maker is not None and self.fake.node(maker).op_type == "Constant":
                self.known.add(maker)
        return node
