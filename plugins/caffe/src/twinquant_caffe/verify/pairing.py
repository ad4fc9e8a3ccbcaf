"""Finding, for every layer of a deploy net, its counterpart in the fake-quant net."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from twinquant_caffe.deploy_net import DeployLayer, DeployNet
from twinquant_caffe.net import CaffeNet, Layer
from twinquant_caffe.prototxt import Message, Scalar
from twinquant_caffe.verify.fake_quants import FakeQuant, find_fake_quant
from twinquant_caffe.verify.findings import Findings

__all__ = ["FloatPair", "Pairing", "QuantizedPair", "pair_twins"]


@dataclass(frozen=True, slots=True)
class QuantizedPair:
    """A quantized layer of both twins.

    Attributes:
        deploy: in the deploy net.
        quant: its quantization in the fake-quant net.
        layer: the layer there.
        dequant: its dequantization there.
    """

    deploy: DeployLayer
    quant: FakeQuant
    layer: Layer
    dequant: Layer


@dataclass(frozen=True, slots=True)
class FloatPair:
    """A layer that both twins have as it was."""

    deploy: Layer
    fake: Layer


@dataclass(frozen=True, slots=True)
class Pairing:
    """Two twins side by side.

    Attributes:
        quantized: the quantized layers that both have.
        floats: the layers that both have as they were.
        findings: what disagrees so far.
    """

    quantized: tuple[QuantizedPair, ...]
    floats: tuple[FloatPair, ...]
    findings: Findings


def pair_twins(deploy: DeployNet, fake: CaffeNet) -> Pairing:
    """Pair the layers of two twins and note what is wired or set differently.

    Args:
        deploy: the deploy net.
        fake: the fake-quant net, with the inputs that it has on the device.
    """
    findings = Findings()
    by_name = {layer.name: layer for layer in fake.layers}
    writers = {version: layer for layer in fake.layers for version in layer.writes}
    quantized: list[QuantizedPair] = []
    for deployed in deploy.layers:
        layer, dequant = by_name.get(deployed.layer.name), by_name.get(deployed.dequant.name)
        if layer is None or dequant is None or not layer.reads:
            missing = deployed.layer.name if layer is None else deployed.dequant.name
            findings.add_wiring([f"the fake-quant net has no layer {missing!r}"])
            continue
        quant = find_fake_quant(fake, layer.reads[0], writers)
        if isinstance(quant, str):
            findings.add(quant, deployed.layer.name)
            findings.wired_differently = True
            continue
        pair = QuantizedPair(deployed, quant, layer, dequant)
        quantized.append(pair)
        problems = [*_wiring_problems(pair)]
        findings.wired_differently = findings.wired_differently or bool(problems)
        for problem in problems:
            findings.add(problem, deployed.layer.name)
    floats = tuple(_float_pairs(deploy, fake, quantized, findings))
    return Pairing(tuple(quantized), floats, findings)


def _wiring_problems(pair: QuantizedPair) -> Iterator[str]:
    quant, layer, dequant = pair.deploy.quant.layer, pair.deploy.layer, pair.deploy.dequant
    if (quant.reads, quant.writes) != ((pair.quant.source,), (pair.quant.result,)):
        yield (
            f"the quantization reads {_text(quant.reads)} in the deploy twin, {pair.quant.source} in the fake-quant "
            "twin"
        )
    yield from _connection_problems(layer, pair.layer)
    yield from _connection_problems(dequant, pair.dequant)
    if _content(layer.message) != _content(pair.layer.message) or layer.type != pair.layer.type:
        yield "the layer has other parameters in the fake-quant twin's prototxt"
    if pair.dequant.type != "Scale":
        yield f"the dequantization {pair.dequant.name!r} of the fake-quant twin is a {pair.dequant.type}, no Scale"
        return
    param = pair.dequant.message.message("scale_param")
    if param.integer("axis", 1) != 1 or param.flag("bias_term", False) or param.integer("num_axes", 1) != 1:
        yield f"the dequantization {pair.dequant.name!r} of the fake-quant twin does more than scale channels"


def _float_pairs(
    deploy: DeployNet, fake: CaffeNet, quantized: list[QuantizedPair], findings: Findings
) -> Iterator[FloatPair]:
    """Pair all other layers, which are to be the same in both nets, in the same order."""
    ours = {name for pair in quantized for name in (*pair.quant.layers, pair.layer.name, pair.dequant.name)}
    theirs = {name for layer in deploy.layers for name in (layer.layer.name, layer.dequant.name)}
    one = {
        layer.name: layer
        for layer in deploy.net.layers
        if layer.name not in theirs and layer.type not in ("Quant", "Input")
    }
    two = {layer.name: layer for layer in fake.layers if layer.name not in ours and layer.type != "Input"}
    findings.add_wiring(f"only the deploy twin has layer {name!r}" for name in one if name not in two)
    findings.add_wiring(f"only the fake-quant twin has layer {name!r}" for name in two if name not in one)
    common = [name for name in one if name in two]
    if common != [name for name in two if name in one]:
        findings.add_wiring(["the layers stand in another order in the fake-quant twin"])
    for name in common:
        left, right = one[name], two[name]
        findings.add_wiring(f"layer {name!r}: {problem}" for problem in _connection_problems(left, right))
        if left.type != right.type or _content(left.message) != _content(right.message):
            findings.add_wiring([f"layer {name!r} has other parameters in the fake-quant twin's prototxt"])
        yield FloatPair(left, right)
    inputs = [{blob: shape for blob, shape in net.inputs if shape} for net in (deploy.net, fake)]
    if any(inputs[0].get(blob, shape) != shape for blob, shape in inputs[1].items()) or (
        {blob for blob, _ in deploy.net.inputs} != {blob for blob, _ in fake.inputs}
    ):
        findings.add_wiring([f"the inputs are {deploy.net.inputs} in the deploy twin, {fake.inputs} in the other"])


def _connection_problems(deploy: Layer, fake: Layer) -> Iterator[str]:
    for what, one, two in (("reads", deploy.reads, fake.reads), ("writes", deploy.writes, fake.writes)):
        if one != two:
            yield f"layer {deploy.name!r} {what} {_text(one)} in the deploy twin, {_text(two)} in the fake-quant twin"


def _text(versions: tuple[object, ...]) -> str:
    return ", ".join(map(str, versions)) or "nothing"


_Content = tuple[tuple[str, object], ...]


def _content(message: Message) -> _Content:
    """Return what a block says, without comments, and without what connects the layer."""
    return _tree(message.without("name", "type", "bottom", "top"))


def _tree(message: Message) -> _Content:
    return tuple(
        (item.name, item.value.text if isinstance(item.value, Scalar) else _tree(item.value)) for item in message
    )
