"""What a net has besides its function: data, loss and accuracy layers, which no device runs, and its inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from twinquant.errors import UnsupportedModelError
from twinquant_caffe.data_layers import DATA_LAYERS
from twinquant_caffe.geometry import Typed
from twinquant_caffe.insert.made import made_layer
from twinquant_caffe.net import CaffeNet, Layer
from twinquant_caffe.prototxt.tree import Message, make

__all__ = ["for_the_device", "is_for_training"]

_EVALUATIONS = frozenset({"Accuracy", "DetectionEvaluate"})

_Shape = tuple[int, ...]


def is_for_training(layer: Typed) -> bool:
    """Tell whether a layer computes a loss or an accuracy."""
    return layer.type.endswith("Loss") or layer.type in _EVALUATIONS


def for_the_device(net: CaffeNet) -> CaffeNet:
    """Return a net without data, loss and accuracy layers, whose inputs are all `Input` layers.

    What a data layer gives and another layer reads becomes an input; its shape is left out where the data layer does
    not tell it. Inputs that only stripped layers read are stripped, too. The probabilities of a SoftmaxWithLoss that
    are read on are those of a Softmax.

    Raises:
        UnsupportedModelError: a layer reads a loss or an accuracy.
    """
    shapes = dict(net.inputs)
    kept: list[Layer] = []
    pending = _without_training(net.layers)
    stripped = [layer for layer in net.layers if is_for_training(layer)]
    read = {bottom for layer in pending if layer.type != "Silence" for bottom in layer.bottoms}
    unread = {bottom for layer in stripped for bottom in layer.bottoms if bottom in shapes} - read
    gone = {top for layer in stripped for top in layer.tops if top not in read} | unread
    given = [(blob, shapes.get(blob, ())) for blob in net.head.texts("input") if blob not in unread]
    for layer in pending:
        if layer.type in DATA_LAYERS:
            found = DATA_LAYERS[layer.type](layer)
            given += [(top, _top_shape(found, position)) for position, top in enumerate(layer.tops) if top in read]
            gone.update(top for top in layer.tops if top not in read)
        elif layer.type == "Input":
            kept += _with_tops(layer, [top for top in layer.tops if top not in unread])
        elif layer.type == "Silence":
            kept += _with_bottoms(layer, [bottom for bottom in layer.bottoms if bottom not in gone])
        else:
            kept.append(layer)
    taken = {layer.name for layer in kept}
    inputs: list[Layer] = []
    for blob, shape in given:
        inputs.append(_input_layer(blob, shape, taken))
        taken.add(inputs[-1].name)
    head = net.head.without("input", "input_dim", "input_shape")
    return replace(net, head=head).with_layers([*inputs, *kept])


def _without_training(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers but losses and accuracies, and a Softmax for a SoftmaxWithLoss whose second top is read."""
    readers = {
        version: layer
        for layer in layers
        if not is_for_training(layer) and layer.type != "Silence"
        for version in layer.reads
    }
    found: list[Layer] = []
    for layer in layers:
        used = [version for version in layer.writes if version in readers]
        if not is_for_training(layer):
            found.append(layer)
        elif layer.type == "SoftmaxWithLoss" and used == list(layer.writes[1:]):
            found += [_softmax(layer)] if used else []
        elif used:
            raise UnsupportedModelError(
                f"layer {readers[used[0]].name!r} reads {used[0].blob!r}, which the {layer.type} layer {layer.name!r} "
                "computes; no device has losses and accuracies: remove what reads them from the net"
            )
    return found


def _softmax(layer: Layer) -> Layer:
    """Return the Softmax in a SoftmaxWithLoss, which writes the second top."""
    parameters = {"softmax_param": layer.message.message("softmax_param")}
    return made_layer(layer.name, "Softmax", layer.bottoms[:1], layer.tops[1:], parameters=parameters)


def _with_tops(layer: Layer, tops: Sequence[str]) -> list[Layer]:
    """Return an Input layer with some of its tops and their shapes; none without any."""
    if len(tops) == len(layer.tops) or not tops:
        return [layer] if tops else []
    param = layer.message.message("input_param")
    shapes = param.messages("shape")
    if len(shapes) == len(layer.tops):
        left = [shape for top, shape in zip(layer.tops, shapes, strict=True) if top in tops]
        param = param.replaced("shape", *left)
    message = layer.message.replaced("top", *tops).replaced("input_param", param)
    return [replace(layer, tops=tuple(tops), message=message)]


def _with_bottoms(layer: Layer, bottoms: Sequence[str]) -> list[Layer]:
    """Return a Silence that reads what is left; none without anything."""
    if not bottoms:
        return []
    return [replace(layer, bottoms=tuple(bottoms), message=layer.message.replaced("bottom", *bottoms))]


def _input_layer(blob: str, shape: _Shape, taken: set[str]) -> Layer:
    name, number = blob, 0
    while name in taken:
        number += 1
        name = f"{blob}_{number}"
    parameter: Message = make(shape=make(dim=shape)) if shape else make()
    return made_layer(name, "Input", (), (blob,), parameters={"input_param": parameter})


def _top_shape(shapes: Sequence[_Shape], position: int) -> _Shape:
    return shapes[position] if position < len(shapes) else ()
