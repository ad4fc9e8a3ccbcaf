"""External data of the input: every legal layout is read, everything else is refused with its reason."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from twinquant.errors import ModelFileError
from twinquant_onnx.load import load_model
from twinquant_onnx.references import external_locations

FLOAT4E2M1, UINT2, FLOAT6E2M3 = 23, 25, 27

VALUES = np.arange(2000, dtype=np.float32)


def external(name: str = "w", dims=(2000,), element_type=TensorProto.FLOAT, **entries) -> TensorProto:
    tensor = TensorProto(name=name, data_type=element_type, dims=dims, data_location=TensorProto.EXTERNAL)
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))
    return tensor


def save(folder: Path, *tensors: TensorProto, nodes=(), name="m.onnx") -> Path:
    made = helper.make_model(helper.make_graph(list(nodes), "g", [], [], list(tensors)))
    (folder / name).write_bytes(made.SerializeToString())
    return folder / name


def contents(graph) -> list[bytes]:
    return [b"".join(bytes(block) for block in entry.content.blocks()) for entry in graph.store.entries]


@pytest.fixture
def data(tmp_path) -> Path:
    """A data file with 64 other bytes before and after the values."""
    (tmp_path / "w.bin").write_bytes(bytes(64) + VALUES.tobytes() + bytes(64))
    return tmp_path


@pytest.mark.parametrize("shared", [True, False], ids=["one file", "a file for each"])
def test_what_onnx_saves_is_loaded(shared, tmp_path):
    tensors = [numpy_helper.from_array(VALUES + index, f"t{index}") for index in range(3)]
    constant = helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(VALUES - 1, "c"))
    made = helper.make_model(helper.make_graph([constant], "g", [], [], tensors))
    onnx.save(
        *(made, tmp_path / "m.onnx"),
        save_as_external_data=True,
        all_tensors_to_one_file=shared,
        location="all.bin" if shared else None,
        size_threshold=0,
        convert_attribute=True,
    )

    graph = load_model(tmp_path / "m.onnx")

    assert contents(graph) == [values.tobytes() for values in (VALUES, VALUES + 1, VALUES + 2, VALUES - 1)]
    assert all(entry.external for entry in graph.store.entries)
    names = ["all.bin"] if shared else ["t0", "t1", "t2", "c"]
    assert graph.inputs == tuple(tmp_path.resolve() / name for name in ["m.onnx", *names])
    assert list(external_locations(tmp_path / "m.onnx")) == names


@pytest.mark.parametrize(
    "entries",
    [
        {"offset": 64, "length": 8000},
        {"offset": 64},
        {"offset": 64, "length": ""},
        {"offset": "0064", "length": 8000, "checksum": "0123"},
    ],
)
def test_offset_and_length_may_be_given_or_not(entries, data):
    graph = load_model(save(data, external(location="w.bin", **entries)))

    assert contents(graph) == [VALUES.tobytes()]


def test_without_an_offset_the_tensor_starts_at_the_beginning(tmp_path):
    (tmp_path / "w.bin").write_bytes(VALUES.tobytes() + b"more")

    assert contents(load_model(save(tmp_path, external(location="w.bin")))) == [VALUES.tobytes()]


@pytest.mark.parametrize("location", ["sub/deep/w.bin", "./sub/deep/w.bin", "sub/../sub/deep/w.bin"])
def test_data_may_lie_in_a_subfolder(location, tmp_path):
    (tmp_path / "sub" / "deep").mkdir(parents=True)
    (tmp_path / "sub" / "deep" / "w.bin").write_bytes(VALUES.tobytes())

    graph = load_model(save(tmp_path, external(location=location)))

    assert contents(graph) == [VALUES.tobytes()]
    assert graph.inputs[1] == tmp_path.resolve() / "sub" / "deep" / "w.bin"


def test_a_small_and_an_empty_tensor_are_external_too(data):
    graph = load_model(
        save(data, external(dims=[3], location="w.bin", offset=68), external("e", [0], location="w.bin"))
    )

    assert contents(graph) == [VALUES[1:4].tobytes(), b""]
    assert all(entry.external for entry in graph.store.entries)


@pytest.mark.parametrize(
    "element_type, count, needed",
    [
        (TensorProto.INT4, 7, 4),
        (TensorProto.UINT4, 8, 4),
        (FLOAT4E2M1, 5, 3),
        (UINT2, 5, 2),
        (FLOAT6E2M3, 5, 4),
        (TensorProto.BOOL, 5, 5),
        (TensorProto.BFLOAT16, 5, 10),
        (TensorProto.COMPLEX128, 2, 32),
    ],
)
def test_the_size_follows_from_the_element_type(element_type, count, needed, data):
    graph = load_model(save(data, external(dims=[count], element_type=element_type, location="w.bin")))

    assert graph.store.entries[0].content.nbytes == needed


def test_tensors_of_constants_and_subgraphs_are_found(data):
    def constant(name: str) -> onnx.NodeProto:
        return helper.make_node("Constant", [], [name], value=external("", location="w.bin", offset=64))

    branch = helper.make_graph([constant("in")], "b", [], [], [external(location="w.bin", offset=64)])
    outer = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)

    graph = load_model(save(data, nodes=[constant("out"), outer]))

    assert contents(graph) == [VALUES.tobytes()] * 5


def refusal(path: Path) -> str:
    with pytest.raises(ModelFileError) as caught:
        load_model(path)
    return str(caught.value)


@pytest.mark.parametrize(
    "entries, reason",
    [
        ({"location": "none.bin"}, "there is no file"),
        ({"location": ""}, "location is empty"),
        ({}, "location is empty"),
        ({"location": "w.bin", "offset": 200}, "bytes 200 to 8200, but .* only 8128"),
        ({"location": "w.bin", "length": 7996}, "length 7996, but .* need 8000"),
        ({"location": "w.bin", "length": 8128}, "length 8128, but .* need 8000"),
        ({"location": "w.bin", "offset": -64}, "offset must be .* got '-64'"),
        ({"location": "w.bin", "offset": "0x40"}, "offset must be .* got '0x40'"),
        ({"location": "w.bin", "length": "8e3"}, "length must be .* got '8e3'"),
        ({"location": "w.bin", "offset": "9" * 5000}, "offset must be"),
        ({"location": "w.bin", "offset": "9" * 19}, "has only 8128"),
        ({"location": "."}, "not a regular file"),
        ({"location": "w.bin\0"}, "cannot be read"),
        ({"location": "n" * 5000}, "cannot be read"),
        ({"location": "w.bin/x"}, "cannot be read"),
        ({"location": "sub\\w.bin"}, "there is no file"),
    ],
)
def test_what_cannot_be_read_is_refused_with_tensor_location_and_reason(entries, reason, data):
    with pytest.raises(ModelFileError, match=reason) as caught:
        load_model(save(data, external("weight", **entries)))
    assert "tensor 'weight'" in str(caught.value)
    assert repr(entries.get("location", ""))[:40] in str(caught.value)


def test_an_absolute_location_is_refused_even_inside_the_folder(data):
    assert "absolute" in refusal(save(data, external(location=str(data / "w.bin"), offset=64)))


def test_a_location_that_leaves_the_folder_is_refused(data):
    (data / "model").mkdir()

    assert "leads out of the model's folder" in refusal(save(data / "model", external(location="../w.bin", offset=64)))


def test_a_link_that_leaves_the_folder_is_refused(data):
    (data / "model").mkdir()
    (data / "model" / "w.bin").symlink_to(data / "w.bin")

    assert "leads out of the model's folder" in refusal(save(data / "model", external(location="w.bin", offset=64)))


def test_a_folder_that_is_a_link_out_is_refused(data):
    (data / "model").mkdir()
    (data / "model" / "sub").symlink_to(data)

    assert "leads out of the model's folder" in refusal(save(data / "model", external(location="sub/w.bin")))


def test_a_link_inside_the_folder_and_a_linked_model_folder_are_fine(data):
    (data / "other.bin").symlink_to("w.bin")
    save(data, external(location="other.bin", offset=64))
    (data.parent / "linked").symlink_to(data)

    assert contents(load_model(data.parent / "linked" / "m.onnx")) == [VALUES.tobytes()]


def test_a_pipe_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")

    assert "not a regular file" in refusal(save(tmp_path, external(location="pipe")))


def test_an_external_string_tensor_is_refused(data):
    assert "strings" in refusal(save(data, external("s", element_type=TensorProto.STRING, location="w.bin")))


def test_negative_dims_are_refused(data):
    assert "dims [-2000] must not be negative" in refusal(save(data, external(dims=[-2000], location="w.bin")))


def test_dims_that_overflow_64_bits_are_refused_as_too_large(data):
    assert "has only 8128" in refusal(save(data, external(dims=[2**40, 2**40], location="w.bin")))


def test_an_unnamed_tensor_is_called_after_its_node(data):
    node = helper.make_node("Constant", [], ["c"], name="make_c", value=external("", location="none.bin"))

    assert "node 'make_c' (Constant)" in refusal(save(data, nodes=[node]))


def test_a_file_cut_off_after_loading_is_an_error_when_it_is_read(data):
    graph = load_model(save(data, external(location="w.bin", offset=64)))
    os.truncate(data / "w.bin", 100)

    with pytest.raises(ModelFileError, match="truncated"):
        contents(graph)


def test_a_message_finds_its_data_from_the_current_folder(data, monkeypatch):
    message = onnx.load(save(data, external(location="w.bin", offset=64)), load_external_data=False)
    monkeypatch.chdir(data)

    graph = load_model(message)

    assert contents(graph) == [VALUES.tobytes()]
    assert graph.inputs == (data.resolve() / "w.bin",)
    assert message.graph.initializer[0].external_data[0].value == "w.bin"


def test_a_message_whose_data_is_not_found_says_to_pass_the_path(data, monkeypatch, tmp_path_factory):
    message = onnx.load(save(data, external(location="w.bin", offset=64)), load_external_data=False)
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))

    with pytest.raises(ModelFileError, match=r"pass the model's path.*onnx\.load"):
        load_model(message)


def test_an_ir_model_keeps_its_external_data_where_it_is(data):
    path = save(data, external(location="w.bin", offset=64, length=8000), numpy_helper.from_array(VALUES, "inside"))
    source = onnx_ir.load(path)

    graph = load_model(source)

    assert contents(graph) == [VALUES.tobytes()] * 2
    assert sorted(entry.external for entry in graph.store.entries) == [False, True]
    assert graph.inputs == (data.resolve() / "w.bin",)
    assert source.graph.initializers["w"].const_value.location == "w.bin"


def test_an_ir_model_may_not_read_outside_its_folder_either(data):
    (data / "model").mkdir()
    source = onnx_ir.load(save(data / "model", external(location="../w.bin", offset=64)))

    with pytest.raises(ModelFileError, match="leads out of the model's folder"):
        load_model(source)


def test_locations_are_listed_once_and_in_order(tmp_path):
    names = ["b.bin", "a.bin", "b.bin", "../up.bin"]
    path = save(tmp_path, *(external(f"t{i}", location=name) for i, name in enumerate(names)), external("none"))

    assert external_locations(path) == ("b.bin", "a.bin", "../up.bin")


def test_big_tensors_in_the_model_itself_are_no_locations(tmp_path):
    assert external_locations(save(tmp_path, numpy_helper.from_array(VALUES, "w"))) == ()


@pytest.mark.parametrize("content", [None, b"", b"no model", b"\x08\x07", bytes(100)])
def test_what_is_no_model_refers_to_nothing(content, tmp_path):
    if content is not None:
        (tmp_path / "x.onnx").write_bytes(content)

    assert external_locations(tmp_path / "x.onnx") == ()
    assert external_locations(tmp_path) == ()


def test_overlapping_tensors_load_as_onnx_loads_them(data):
    one = external(location="w.bin", offset=64, length=8000)
    path = save(data, one, external("v", [10, 100], location="w.bin", offset=256, length=4000))
    expected = onnx.load(path)

    assert contents(load_model(path)) == [tensor.raw_data for tensor in expected.graph.initializer]
