"""Layers that bring data, which only Caffe has: what they say about the shapes of their tops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from twinquant_caffe.net import Layer

__all__ = ["DATA_LAYERS"]

_Shape = tuple[int, ...]


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
