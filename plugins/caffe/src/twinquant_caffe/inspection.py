"""What a prototxt and its caffemodel hold, for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import prod
from pathlib import Path

from twinquant.errors import ModelFileError
from twinquant_caffe.insert.python_style import MODULE_NAME
from twinquant_caffe.prototxt import Message
from twinquant_caffe.schema import INT8_DATA
from twinquant_caffe.sources import PROTOTXT, source_files
from twinquant_caffe.written import WrittenTwin, read_written

__all__ = ["inspect_net"]

_COMMON_TYPES = 8
"""How many layer types are listed by name."""


def inspect_net(source: Path) -> Sequence[tuple[str, str]]:
    """Return (fact, value) rows about a net: its kind, its inputs, its layers and its parameters.

    Args:
        source: the prototxt, whose caffemodel is found by its name, or both with a comma between them.

    Raises:
        ModelFileError: a file is missing or damaged.
    """
    files = source_files(str(source))
    if files[0].suffix.lower() != PROTOTXT:
        raise ModelFileError(f"{str(source)!r}: give the prototxt; its caffemodel is found beside it")
    twin = read_written(files[0], files[1] if len(files) > 1 else None)
    layers = twin.message.messages("layer")
    types = Counter(layer.text("type") for layer in layers)
    common = ", ".join(f"{name} {count}" for name, count in types.most_common(_COMMON_TYPES))
    more = len(types) - _COMMON_TYPES
    blobs = [blob for stored in twin.stored for blob in stored.blobs]
    integers = sum(INT8_DATA in blob.runs for blob in blobs)
    return [
        ("kind", _kind(twin, types)),
        ("name", twin.message.text("name") or "none"),
        *(("input", text) for text in _inputs(twin.message)),
        ("layers", f"{len(layers)}: {common}{f' and {more} more types' if more > 0 else ''}"),
        ("caffemodel", f"{twin.caffemodel.name}, {twin.caffemodel.stat().st_size:,} bytes"),
        ("parameters", f"{len(blobs)}, {sum(prod(blob.lengths) for blob in blobs):,} values; {integers} x int8"),
    ]


def _kind(twin: WrittenTwin, types: Counter[str]) -> str:
    layers = twin.message.messages("layer")
    if any(layer.message("quant_param").has("object_layer") for layer in layers):
        return f"fake-quant net of the style amct, {types['DeQuant']} x quantized layer"
    if types["Quant"] or types["DeQuant"]:
        return f"deploy net, {types['DeQuant']} x quantized layer, {types['Quant']} x Quant"
    imitated = sum("_dequant_layer" in layer.text("name") for layer in layers)
    python = any(layer.message("python_param").text("module") == MODULE_NAME for layer in layers)
    style = "python" if python else "builtin"
    return f"fake-quant net of the style {style}, {imitated} x quantized layer" if imitated else "float net"


def _inputs(message: Message) -> list[str]:
    shapes = [list(shape.integers("dim")) for shape in message.messages("input_shape")]
    dims = list(message.integers("input_dim"))
    shapes = shapes or [dims[start : start + 4] for start in range(0, len(dims), 4)]
    found = [
        f"{name}: {shapes[place] if place < len(shapes) else 'unknown shape'}"
        for place, name in enumerate(message.texts("input"))
    ]
    for layer in message.messages("layer"):
        if layer.text("type") == "Input":
            given = [list(shape.integers("dim")) for shape in layer.message("input_param").messages("shape")]
            found += [
                f"{top}: {given[min(place, len(given) - 1)] if given else 'unknown shape'}"
                for place, top in enumerate(layer.texts("top"))
            ]
    return found
