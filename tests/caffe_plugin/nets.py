"""Small Caffe nets for tests, written and read by protobuf with a schema of this module's own.

`small_net(folder, text, blobs)` writes the pair; `read_prototxt` and `read_caffemodel` read files with protobuf.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

FieldType = descriptor_pb2.FieldDescriptorProto
PACKAGE = "nets_of_tests"

# field name: (number, type); a type that is no name of protobuf's is a message; [] is repeated, [packed] is packed
SCHEMA = {
    "BlobShape": {"dim": (1, "int64 [packed]")},
    "BlobProto": {
        **{name: (number, "int32") for number, name in enumerate(("num", "channels", "height", "width"), 1)},
        "data": (5, "float [packed]"),
        "diff": (6, "float [packed]"),
        "shape": (7, "BlobShape"),
        "double_data": (8, "double [packed]"),
        "double_diff": (9, "double [packed]"),
        "int8_data": (10, "bytes"),
        "int32_data": (11, "int32 [packed]"),
        "uint64_data": (12, "uint64 [packed]"),
    },
    "UnpackedBlob": {"data": (5, "float []"), "shape": (7, "BlobShape"), "double_data": (8, "double []")},
    "ParamSpec": {"name": (1, "string"), "lr_mult": (3, "float"), "decay_mult": (4, "float")},
    "QuantParameter": {"scale": (2, "float"), "offset": (3, "bytes")},
    "LayerParameter": {
        "name": (1, "string"),
        "type": (2, "string"),
        "bottom": (3, "string []"),
        "top": (4, "string []"),
        "loss_weight": (5, "float []"),
        "param": (6, "ParamSpec []"),
        "blobs": (7, "BlobProto []"),
        "phase": (10, "int32"),
        "quant_param": (208, "QuantParameter"),
    },
    "V1LayerParameter": {
        "bottom": (2, "string []"),
        "top": (3, "string []"),
        "name": (4, "string"),
        "type": (5, "int32"),
        "blobs": (6, "BlobProto []"),
    },
    "NetParameter": {
        "name": (1, "string"),
        "layers": (2, "V1LayerParameter []"),
        "input": (3, "string []"),
        "input_dim": (4, "int32 []"),
        "input_shape": (8, "BlobShape []"),
        "layer": (100, "LayerParameter []"),
    },
}


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="nets_of_tests.proto", package=PACKAGE, syntax="proto2")
    for message_name, fields in SCHEMA.items():
        message = file.message_type.add(name=message_name)
        for name, (number, kind) in fields.items():
            kind, _, repeated = kind.partition(" ")
            field = message.field.add(name=name, number=number, label=3 if repeated else 1)
            if kind in SCHEMA:
                field.type, field.type_name = FieldType.TYPE_MESSAGE, f".{PACKAGE}.{kind}"
            else:
                field.type = getattr(FieldType, f"TYPE_{kind.upper()}")
            field.options.packed = repeated == "[packed]"
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}")) for name in SCHEMA}


CLASSES = _classes()
"""Message classes by name: `CLASSES["NetParameter"]()`."""


def small_net(
    folder: Path,
    layers_text: str,
    blobs: Mapping[str, Sequence[np.ndarray]] | None = None,
    *,
    stem: str = "net",
    legacy: bool = False,
) -> tuple[Path, Path]:
    """Write a prototxt with this text, and a caffemodel with its layers and their blobs.

    Args:
        folder: where the two files go; it is made if it is missing.
        layers_text: the whole prototxt.
        blobs: the parameters of layers, by layer name; float64 arrays go to double_data.
        stem: of the files' names.
        legacy: write num, channels, height and width instead of a shape, with leading ones, as old versions of Caffe.
    """
    folder.mkdir(parents=True, exist_ok=True)
    prototxt, caffemodel = folder / f"{stem}.prototxt", folder / f"{stem}.caffemodel"
    prototxt.write_text(layers_text)
    net = CLASSES["NetParameter"]()
    text_format.Parse(layers_text, net, allow_unknown_field=True)
    remaining = dict(blobs or {})
    for layer in net.layer:
        for array in remaining.pop(layer.name, ()):
            fill_blob(layer.blobs.add(), array, legacy=legacy)
    assert not remaining, f"blobs for layers that are not there: {list(remaining)}"
    caffemodel.write_bytes(net.SerializeToString())
    return prototxt, caffemodel


def fill_blob(blob: Any, array: np.ndarray, *, legacy: bool = False) -> None:
    """Put an array into a BlobProto."""
    array = np.asarray(array)
    if legacy:
        blob.num, blob.channels, blob.height, blob.width = (1,) * (4 - array.ndim) + array.shape
    else:
        blob.shape.dim.extend(array.shape)
    values = blob.double_data if array.dtype == np.float64 else blob.data
    values.extend(array.reshape(-1).tolist())


def read_caffemodel(path: Path) -> Any:
    """Parse a caffemodel with protobuf: a NetParameter."""
    return CLASSES["NetParameter"].FromString(path.read_bytes())


def read_prototxt(path: Path) -> Any:
    """Parse a prototxt with protobuf, dropping the fields that SCHEMA lacks: a NetParameter."""
    return text_format.Parse(path.read_text(), CLASSES["NetParameter"](), allow_unknown_field=True)


def stored_arrays(path: Path) -> dict[str, list[np.ndarray]]:
    """Return the arrays of a caffemodel by layer name, parsed by protobuf: float, double, int8, int32 or uint64."""
    return {layer.name: [blob_array(blob) for blob in layer.blobs] for layer in read_caffemodel(path).layer}


def blob_array(blob: Any) -> np.ndarray:
    """Return the values of a BlobProto in its shape, of whatever type it holds."""
    shape = tuple(blob.shape.dim) if blob.HasField("shape") else (blob.num, blob.channels, blob.height, blob.width)
    if blob.int8_data:
        return np.frombuffer(blob.int8_data, np.int8).reshape(shape)
    kinds = {"int32_data": np.int32, "uint64_data": np.uint64, "double_data": np.float64, "data": np.float32}
    for name, dtype in kinds.items():
        if len(values := getattr(blob, name)):
            return np.array(values, dtype).reshape(shape)
    return np.zeros(shape, np.float32)
