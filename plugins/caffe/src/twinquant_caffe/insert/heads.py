"""What a net has besides its function: data, loss and accuracy layers, which no device runs, and its inputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from twinquant_caffe.geometry import Typed
from twinquant_caffe.insert.made import made_layer
from twinquant_caffe.net import CaffeNet, Layer
from twinquant_caffe.prototxt.tree import Message, make

__all__ = ["DATA_LAYERS", "for_the_device", "is_for_training"]

_EVALUATIONS = frozenset({"Accuracy", "DetectionEvaluate"})

_Shape = tuple[int, ...]


def is_for_training(layer: Typed) -> bool:
    """Tell whether a layer computes a loss or an accuracy."""
    return layer.type.endswith("Loss") or layer.type in _EVALUATIONS


def for_the_device(net: CaffeNet) -> CaffeNet:
    """Return a net without data, loss and accuracy layers, whose inputs are all `Input` layers.

    What a data layer gives and another layer reads becomes an input; its shape is left out where the data layer does
    not tell it. Inputs that only stripped layers read are stripped, too.
    """
    shapes = dict(net.inputs)
    kept: list[Layer] = []
    pending = [layer for layer in net.layers if not is_for_training(layer)]
    read = {bottom for layer in pending if layer.type != "Silence" for bottom in layer.bottoms}
    unread = {bottom for layer in net.layers if is_for_training(layer) for bottom in layer.bottoms} - read
    dropped: set[str] = {top for layer in net.layers if is_for_training(layer) for top in layer.tops} | unread
    given = [(blob, shapes.get(blob, ())) for blob in net.head.texts("input") if blob not in unread]
    for layer in pending:
        if layer.type == "Input" and layer.tops and unread.issuperset(layer.tops):
            continue
        if layer.type in DATA_LAYERS:
            found = DATA_LAYERS[layer.type](layer)
            given += [(top, _top_shape(found, position)) for position, top in enumerate(layer.tops) if top in read]
            dropped.update(top for top in layer.tops if top not in read)
        elif layer.type != "Silence" or dropped.isdisjoint(layer.bottoms):
            kept.append(layer)
    taken = {layer.name for layer in kept}
    inputs: list[Layer] = []
    for blob, shape in given:
        inputs.append(_input_layer(blob, shape, taken))
        taken.add(inputs[-1].name)
    head = net.head.without("input", "input_dim", "input_shape")
    return replace(net, head=head).with_layers([*inputs, *kept])


def _input_layer(blob: str, shape: _Shape, taken: set[str]) -> Layer:
    name, number = blob, 0
    while name in taken:
        number += 1
        name = f"{blob}_{number}"
    parameter: Message = make(shape=make(dim=shape)) if shape else make()
    return made_layer(name, "Input", (), (blob,), parameters={"input_param": parameter})


def _top_shape(shapes: Sequence[_Shape], position: int) -> _Shape:
    return shapes[position] if position < len(shapes) else ()


def _memory_data(layer: Layer) -> Sequence[_Shape]:
    param = layer.message.message("memory_data_param")
    lengths = tuple(param.integer(name, 0) for name in ("batch_size", "channels", "height", "width"))
    return [lengths, lengths[:1]] if all(lengths) else []


def _dummy_data(layer: Layer) -> Sequence[_Shape]:
    param = layer.message.message("dummy_data_param")
    shapes = [shape.integers("dim") for shape in param.messages("shape")]
    if not shapes:
        columns = [param.integers(name) for name in ("num", "channels", "height", "width")]
        shapes = list(zip(*columns, strict=False))
    return shapes * len(layer.tops) if len(shapes) == 1 else shapes


def _image_data(layer: Layer) -> Sequence[_Shape]:
    param, transform = layer.message.message("image_data_param"), layer.message.message("transform_param")
    batch, crop = param.integer("batch_size", 1), transform.integer("crop_size", 0)
    height, width = (crop or param.integer(name, 0) for name in ("new_height", "new_width"))
    channels = 3 if param.flag("is_color", True) else 1
    return [(batch, channels, height, width), (batch,)] if height and width else []


def _unknown(layer: Layer) -> Sequence[_Shape]:
    """Tell nothing: the shape is that of the stored data."""
    del layer
    return []


DATA_LAYERS: Mapping[str, Callable[[Layer], Sequence[_Shape]]] = {
    "Data": _unknown,
    "AnnotatedData": _unknown,
    "HDF5Data": _unknown,
    "WindowData": _unknown,
    "ImageData": _image_data,
    "MemoryData": _memory_data,
    "DummyData": _dummy_data,
}
"""Types of layers that bring data: the shapes of their tops, as far as they tell them."""
