"""Unusual but legal encodings of a model: what protobuf's own parser reads from a file is what is loaded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from twinquant.errors import ModelFileError
from twinquant.wire import WireError, encode_varint, fields, read_varint
from twinquant_onnx.load import load_model

VALUES = np.random.default_rng(3).standard_normal(2000).astype(np.float32)
OTHER = VALUES[::-1].copy()


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


def field(number: int, payload: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def number(field_number: int, value: int) -> bytes:
    return varint(field_number << 3) + varint(value)


def tensor(name: str = "w", *data: bytes) -> bytes:
    """A float tensor of 2000 values; `data` are its data fields, in order."""
    return number(1, 2000) + number(2, TensorProto.FLOAT) + b"".join(data) + field(8, name.encode())


RAW = field(9, VALUES.tobytes())
START = number(1, 8)
OPSET = field(8, number(2, 17))


def load_both(path: Path, data: bytes):
    """Return our graph, and the message that protobuf's own parser reads."""
    path.write_bytes(data)
    expected = onnx.ModelProto()
    expected.ParseFromString(data)
    return load_model(path), expected


def stored_bytes(graph, message: TensorProto) -> bytes:
    return b"".join(bytes(block) for block in graph.store.get(message).content.blocks())


def test_a_graph_in_several_pieces_is_put_together(tmp_path):
    pieces = [field(5, tensor("a", RAW)), field(2, b"g"), field(5, tensor("b", field(9, OTHER.tobytes())))]

    graph, expected = load_both(
        tmp_path / "m.onnx", START + field(7, pieces[0]) + OPSET + field(7, pieces[1] + pieces[2])
    )

    assert [t.name for t in graph.model.graph.initializer] == ["a", "b"]
    assert graph.model.graph.name == expected.graph.name == "g"
    assert [stored_bytes(graph, t) for t in graph.model.graph.initializer] == [
        t.raw_data for t in expected.graph.initializer
    ]


@pytest.mark.parametrize(
    "data",
    [
        RAW + number(1, 2000) + number(2, 1) + field(8, b"w"),
        field(8, b"w") + number(2, 1) + RAW + number(1, 2000),
        number(1, 2000) + field(9, OTHER.tobytes()) + number(2, 1) + RAW + field(8, b"w"),
        number(1, 2000) + number(2, 7) + RAW + number(2, 1) + field(8, b"other") + field(8, b"w"),
        field(1, varint(2000)) + number(2, 1) + RAW + field(8, b"w"),
        number(1, 2000) + number(2, 1) + RAW + number(14, 0) + field(8, b"w"),
        number(1, 2000) + number(2, 1) + RAW + field(13, field(1, b"location") + field(2, b"x")) + field(8, b"w"),
        number(1, 2000) + number(2, 1) + field(9, b"") + RAW + field(8, b"w"),
    ],
    ids=[
        "data first",
        "name first",
        "data twice",
        "type twice",
        "packed dims",
        "default place",
        "stale place",
        "empty",
    ],
)
def test_the_fields_of_a_tensor_may_come_in_any_order_and_the_last_one_counts(data, tmp_path):
    graph, expected = load_both(tmp_path / "m.onnx", START + field(7, field(5, data)))

    loaded, message = graph.model.graph.initializer[0], expected.graph.initializer[0]
    assert (loaded.name, loaded.data_type, list(loaded.dims)) == ("w", TensorProto.FLOAT, [2000])
    assert stored_bytes(graph, loaded) == message.raw_data == VALUES.tobytes()


def test_an_attributes_tensor_in_several_pieces_is_put_together(tmp_path):
    attribute = field(1, b"value") + field(5, number(1, 2000) + RAW) + number(20, 4) + field(5, number(2, 1))
    node = field(2, b"y") + field(4, b"Constant") + field(5, attribute)

    graph, expected = load_both(tmp_path / "m.onnx", START + field(7, field(1, node)))

    loaded = graph.model.graph.node[0].attribute[0].t
    assert stored_bytes(graph, loaded) == numpy_helper.to_array(expected.graph.node[0].attribute[0].t).tobytes()


@pytest.mark.parametrize(
    "element_type, number_, dtype", [(TensorProto.FLOAT, 4, "<f4"), (TensorProto.DOUBLE, 10, "<f8")]
)
def test_packed_floats_are_read_in_place(element_type, number_, dtype, tmp_path):
    values = VALUES.astype(dtype)
    message = number(1, 2000) + number(2, element_type) + field(number_, values.tobytes())

    graph, expected = load_both(tmp_path / "m.onnx", START + field(7, field(5, message)))

    assert stored_bytes(graph, graph.model.graph.initializer[0]) == values.tobytes()
    assert numpy_helper.to_array(expected.graph.initializer[0]).tobytes() == values.tobytes()


@pytest.mark.parametrize(
    "data",
    [
        field(4, VALUES[:900].tobytes()) + field(4, VALUES[900:].tobytes()),
        b"".join(varint(4 << 3 | 5) + value.tobytes() for value in VALUES),
        field(4, VALUES[:1999].tobytes()) + varint(4 << 3 | 5) + VALUES[1999].tobytes(),
    ],
    ids=["two pieces", "one by one", "mixed"],
)
def test_floats_in_several_pieces_stay_in_the_message(data, tmp_path):
    graph, _ = load_both(tmp_path / "m.onnx", START + field(7, field(5, tensor("w", data))))

    loaded = graph.model.graph.initializer[0]
    assert graph.store.get(loaded) is None
    assert numpy_helper.to_array(loaded).tobytes() == VALUES.tobytes()


def test_unknown_fields_are_kept(tmp_path):
    unknown = field(900, b"from a later version") + number(901, 5) + varint(902 << 3 | 1) + bytes(8)
    graph, _ = load_both(tmp_path / "m.onnx", START + unknown + field(7, unknown + field(5, tensor("w", RAW, unknown))))

    assert graph.model.SerializeToString().count(unknown) == 3


def test_a_group_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(START + varint(900 << 3 | 3) + varint(900 << 3 | 4) + field(7, field(2, b"g")))

    with pytest.raises(ModelFileError, match="wire type 3"):
        load_model(tmp_path / "m.onnx")


def test_a_forged_reference_to_another_tensors_data_is_refused(tmp_path):
    forged = (
        number(1, 2000) + number(2, 1) + field(13, field(1, b"location") + field(2, b"twinquant:0")) + number(14, 1)
    )
    (tmp_path / "m.onnx").write_bytes(
        START + field(7, field(5, tensor("w", RAW)) + field(5, forged + field(8, b"thief")))
    )

    with pytest.raises(ModelFileError, match=r"'thief'.*'twinquant:0'"):
        load_model(tmp_path / "m.onnx")


def test_a_tensor_that_its_attributes_type_denies_is_refused(tmp_path):
    attribute = field(1, b"value") + field(5, tensor("w", RAW)) + number(20, 2)
    (tmp_path / "m.onnx").write_bytes(START + field(7, field(1, field(4, b"Constant") + field(5, attribute))))

    with pytest.raises(ModelFileError, match="an attribute holds a tensor"):
        load_model(tmp_path / "m.onnx")


def test_endless_nesting_is_refused(tmp_path):
    graph = field(2, b"n" * 5000)
    for _ in range(60):
        graph = field(1, field(5, field(6, graph)))
    (tmp_path / "m.onnx").write_bytes(START + field(7, graph))

    with pytest.raises(ModelFileError, match="no binary ONNX model"):
        load_model(tmp_path / "m.onnx")


def test_an_attribute_without_a_type_may_hold_a_tensor(tmp_path):
    attribute = field(1, b"value") + field(5, tensor("w", RAW))
    graph, _ = load_both(tmp_path / "m.onnx", START + field(7, field(1, field(4, b"Constant") + field(5, attribute))))

    assert stored_bytes(graph, graph.model.graph.node[0].attribute[0].t) == VALUES.tobytes()


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 2**31, 2**63, 2**64 - 1])
def test_varints_are_written_as_the_protobuf_guide_says(value):
    assert encode_varint(value) == varint(value)
    assert read_varint(b"?" + varint(value) + b"?", 1, 12) == (value, 1 + len(varint(value)))


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x80" * 12])
def test_a_varint_without_an_end_is_an_error(data):
    with pytest.raises(WireError, match="does not end"):
        read_varint(data, 0, len(data))


def test_fields_are_found_with_their_places():
    data = number(1, 300) + field(7, b"abc") + varint(20 << 3 | 5) + b"1234"

    assert list(fields(data, 0, len(data))) == [(1, 0, 0, 1, 3), (7, 2, 3, 5, 8), (20, 5, 8, 10, 14)]


@pytest.mark.parametrize(
    "data, reason",
    [
        (b"\x0a\x05abc", "field 1 at byte 0 reaches to byte 7, but the data ends at byte 5"),
        (b"\x0a", "does not end"),
        (b"\x00\x01", "no field number 0"),
        (b"\x0f", "wire type 7"),
        (b"\x0d123", "reaches to byte 5"),
    ],
)
def test_what_is_no_message_is_an_error_with_its_place(data, reason):
    with pytest.raises(WireError, match=reason):
        list(fields(data, 0, len(data)))


def test_the_opset_stays_where_it_was(tmp_path):
    made = helper.make_model(helper.make_graph([], "g", [], []), opset_imports=[helper.make_opsetid("", 17)])
    graph, expected = load_both(tmp_path / "m.onnx", made.SerializeToString())

    assert graph.model == expected


@pytest.mark.parametrize("field_number", [6, 2])
def test_a_messages_text_that_is_not_utf8_is_kept(field_number):
    data = START + field(field_number, b"caf\xe9") + field(7, field(5, tensor("w", RAW)))
    source = onnx.ModelProto()
    source.ParseFromString(data)

    assert field(field_number, b"caf\xe9") in load_model(source).model.SerializeToString()
