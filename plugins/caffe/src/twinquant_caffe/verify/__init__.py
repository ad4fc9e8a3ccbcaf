"""Proof that two twins agree: everything they hold, and what every layer computes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from twinquant.errors import VerificationError
from twinquant.verification import LayerVerdict, VerifyReport
from twinquant_caffe.deploy_net import connect, read_deploy
from twinquant_caffe.insert.heads import for_the_device
from twinquant_caffe.insert.python_style import is_python_quant, needs_module
from twinquant_caffe.net import CaffeNet, Layer
from twinquant_caffe.opencv import import_opencv
from twinquant_caffe.prototxt import Message
from twinquant_caffe.python_layers import QuantLayer
from twinquant_caffe.shapes import ShapeRule, same_shape
from twinquant_caffe.verify.contents import check_contents
from twinquant_caffe.verify.dynamic import judge_on_data
from twinquant_caffe.verify.feeds import make_feeds
from twinquant_caffe.verify.pairing import pair_twins
from twinquant_caffe.written import read_written

__all__ = ["verify_twins"]


def verify_twins(fake_quant: Path, deploy: Path, data: Mapping[str, Any] | None = None) -> VerifyReport:
    """Compare two twins: first all they hold, then every layer on its own on an input, then both running freely.

    Args:
        fake_quant: the fake-quant prototxt; its caffemodel is found by its name.
        deploy: the deploy prototxt, likewise.
        data: arrays by input name; None means seeded random input.

    Returns:
        one verdict a layer, one an output, and what disagrees outside of any layer.

    Raises:
        CapabilityError: OpenCV, which runs the fake-quant net, is missing.
        ModelFileError: a file is missing or damaged.
        VerificationError: the two are no twins, were given in the wrong order, the data do not fit, or the fake-quant
            net does not run.
    """
    deployed, fake_files = read_written(deploy), read_written(fake_quant)
    _check_kinds(fake_files.message, deployed.message, fake_quant, deploy)
    net = read_deploy(deploy)
    fake = replace(for_the_device(connect(fake_files)), files=(fake_quant, fake_files.caffemodel))
    pairing = pair_twins(net, fake)
    if not net.layers:
        raise VerificationError(f"{str(deploy)!r} has no quantized layer: there is nothing to verify")
    check_contents(pairing, deployed, fake_files)
    feeds = make_feeds(net, data)
    with _runnable(fake) as (runnable, rules):
        verdicts, outputs = judge_on_data(pairing, net, runnable, feeds, rules)
    judged = {verdict.name: verdict for verdict in verdicts}
    findings = pairing.findings
    layers: list[LayerVerdict] = []
    for layer in net.layers:
        name = layer.layer.name
        verdict = judged.get(name, LayerVerdict(name, layer.layer.type, False))
        problems = (*findings.layers.get(name, ()), *verdict.problems)
        layers.append(replace(verdict, problems=problems, agree=verdict.agree and not problems))
    return VerifyReport(tuple(layers), tuple(outputs), tuple(findings.general))


@contextmanager
def _runnable(fake: CaffeNet) -> Iterator[tuple[CaffeNet, Mapping[str, ShapeRule]]]:
    """Give a fake-quant net that OpenCV can run, and the shapes of our layers in it.

    The type Python is left to the Python layers of the user's.
    """
    if not needs_module(fake):
        yield fake, {}
        return
    cv2 = import_opencv()
    kind = f"TwinQuantFakeQuant{id(fake):x}"
    cv2.dnn_registerLayer(kind, QuantLayer)
    try:
        # The tensors keep their names and versions, by which the pairing knows them.
        layers = [_renamed(layer, kind) if is_python_quant(layer) else layer for layer in fake.layers]
        yield fake.with_layers(layers), {kind: same_shape}
    finally:
        cv2.dnn_unregisterLayer(kind)


def _renamed(layer: Layer, kind: str) -> Layer:
    return replace(layer, type=kind, message=layer.message.replaced("type", kind))


def _types(message: Message) -> set[str]:
    return {layer.text("type") for layer in message.messages("layer")}


def _check_kinds(fake: Message, deploy: Message, fake_path: Path, deploy_path: Path) -> None:
    """Refuse nets that are not what they are given as."""
    if "Quant" in _types(fake) and "Quant" not in _types(deploy):
        raise VerificationError(
            f"the two nets are swapped: {str(fake_path)!r} is a deploy net; give the fake-quant net first"
        )
    if "Quant" not in _types(deploy):
        raise VerificationError(f"{str(deploy_path)!r} has no Quant layer; a deploy net is expected there")
    if any(layer.message("quant_param").has("object_layer") for layer in fake.messages("layer")):
        raise VerificationError(
            f"{str(fake_path)!r} is of the style 'amct': only the vendor's patched Caffe runs it, so that it cannot be "
            "verified here; save with fake_quant_style 'builtin' or 'python'"
        )
    if "Quant" in _types(fake):
        raise VerificationError(f"{str(fake_path)!r} is a deploy net; a fake-quant net is expected there")
