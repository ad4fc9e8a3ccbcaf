"""Loading: whatever the source, structure and tensors are those that onnx itself reads, and big tensors stay out."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from twinquant.errors import ArgumentError
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.load import load_model
from twinquant_onnx.tensors import FileRange

BIG = 4096
RNG = np.random.default_rng(7)


def floats(name: str, *shape: int) -> TensorProto:
    return numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name)


def model(nodes=(), initializers=(), **more) -> onnx.ModelProto:
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        list(initializers),
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], **more)


def constant(name: str, tensor: TensorProto) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], name=f"make_{name}", value=tensor)


def initializers_of_many_types() -> onnx.ModelProto:
    count = 2 * BIG + 1
    numbers = [
        numpy_helper.from_array(RNG.integers(0, 2, count).astype(dtype), f"of_{np.dtype(dtype).name}")
        for dtype in (
            *(np.float32, np.float16, np.float64, np.complex64, np.complex128, np.bool_),
            *(np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64),
        )
    ]
    bits = [
        helper.make_tensor("of_bfloat16", TensorProto.BFLOAT16, [count], bytes(2 * count), raw=True),
        helper.make_tensor("of_int4", TensorProto.INT4, [count], RNG.bytes(count // 2 + 1), raw=True),
        helper.make_tensor("of_float8", TensorProto.FLOAT8E5M2, [count], RNG.bytes(count), raw=True),
    ]
    odd = [
        helper.make_tensor("of_strings", TensorProto.STRING, [2], [b"one", b"two"]),
        helper.make_tensor("empty", TensorProto.FLOAT, [0, 5], []),
        numpy_helper.from_array(np.float32(3), "scalar"),
    ]
    return model(initializers=[*numbers, *bits, *odd])


def typed_data() -> onnx.ModelProto:
    values = RNG.integers(-5, 5, BIG)
    return model(
        initializers=[
            helper.make_tensor("floats", TensorProto.FLOAT, [BIG], values),
            helper.make_tensor("doubles", TensorProto.DOUBLE, [2, BIG // 2], values),
            helper.make_tensor("longs", TensorProto.INT64, [BIG], values),
            helper.make_tensor("halves", TensorProto.FLOAT16, [BIG], values.astype(np.float32)),
            helper.make_tensor("bytes", TensorProto.INT8, [2 * BIG], np.tile(values, 2)),
            helper.make_tensor("unsigned", TensorProto.UINT32, [BIG], np.abs(values)),
            helper.make_tensor("few", TensorProto.FLOAT, [3], [1, 2, 3]),
        ]
    )


def nested_subgraphs() -> onnx.ModelProto:
    def branch(name: str, inner: list[onnx.NodeProto]) -> onnx.GraphProto:
        nodes = [*inner, constant(f"{name}_c", floats("", 40, 40)), helper.make_node("Neg", [f"{name}_c"], [name])]
        return helper.make_graph(nodes, name, [], [onnx.ValueInfoProto(name=name)], [floats(f"{name}_w", 50, 50)])

    cond = helper.make_tensor("cond", TensorProto.BOOL, [], [True])
    inner = helper.make_node("If", ["cond"], ["i"], name="in", then_branch=branch("a", []), else_branch=branch("b", []))
    outer = helper.make_node(
        "If", ["cond"], ["y"], name="out", then_branch=branch("c", [inner]), else_branch=branch("d", [])
    )
    return model([outer], [cond, floats("top", 64, 64)])


def attributes_and_trailing_outputs() -> onnx.ModelProto:
    lists = helper.make_node("Lists", ["x"], ["a"], domain="own", name="lists", alpha=0.5, axes=[1, 2], mode="m")
    lists.attribute.append(
        helper.make_attribute("several", [floats("s0", 40, 40), floats("s1", 2), floats("s2", 50, 50)])
    )
    body = helper.make_graph([constant("z", floats("", 64, 64))], "body", [], [onnx.ValueInfoProto(name="z")])
    lists.attribute.append(helper.make_attribute("bodies", [body, body]))
    lstm = helper.make_node("LSTM", ["x", "w", "r"], ["y", "", ""], name="lstm", hidden_size=4)
    return model([lists, lstm], [floats("w", 1, 16, 64), floats("r", 1, 16, 4)])


def functions() -> onnx.ModelProto:
    function = helper.make_function(
        *("own", "F", ["a"], ["b"]),
        [constant("k", floats("", 64, 64)), helper.make_node("MatMul", ["a", "k"], ["b"])],
        [helper.make_opsetid("", 17)],
    )
    function.attribute_proto.append(helper.make_attribute("default", floats("preset", 64, 64)))
    made = model([helper.make_node("F", ["x"], ["y"], domain="own", name="call")], functions=[function])
    made.opset_import.append(helper.make_opsetid("own", 1))
    return made


def sparse_and_training() -> onnx.ModelProto:
    def sparse(name: str) -> onnx.SparseTensorProto:
        indices = numpy_helper.from_array(np.arange(2000, dtype=np.int64), f"{name}_indices")
        return helper.make_sparse_tensor(floats(name, 2000), indices, [9000])

    node = helper.make_node("Constant", [], ["c"], name="sparse_constant", sparse_value=sparse(""))
    many = helper.make_node("Many", [], ["m"], name="many", domain="own")
    many.attribute.append(helper.make_attribute("all", [sparse("p"), sparse("q")]))
    made = model([node, many])
    made.graph.sparse_initializer.append(sparse("s"))
    made.training_info.add().initialization.initializer.append(floats("start", 64, 64))
    return made


def texts_of_every_kind() -> onnx.ModelProto:
    made = model([helper.make_node("Relu", ["x"], ["y"], name="r", doc_string="d")], [floats("w", 64, 64)])
    made.producer_name, made.producer_version, made.domain, made.model_version = "p", "1.2", "dom", 3
    made.doc_string, made.graph.doc_string = "of the model", "of the graph"
    helper.set_model_props(made, {"a": "1", "b": "2"})
    annotation = made.graph.quantization_annotation.add(tensor_name="x")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="w")
    made.graph.initializer[0].doc_string = "weights"
    return made


EVERYWHERE = [
    initializers_of_many_types,
    typed_data,
    nested_subgraphs,
    attributes_and_trailing_outputs,
    functions,
    texts_of_every_kind,
]
NOT_IN_THE_IR = [sparse_and_training]


def all_tensors(message) -> list[TensorProto]:
    if isinstance(message, TensorProto):
        return [message]
    found = []
    for field, value in message.ListFields():
        if field.message_type is not None:
            for child in [value] if hasattr(value, "DESCRIPTOR") else value:
                found += all_tensors(child)
    return found


def without_data(tensor: TensorProto) -> TensorProto:
    left = TensorProto()
    left.CopyFrom(tensor)
    for field in TensorProto.DESCRIPTOR.fields_by_name:
        if field.endswith("_data") or field == "data_location":
            left.ClearField(field)
    return left


def raw(tensor: TensorProto) -> bytes:
    if tensor.HasField("raw_data"):
        return tensor.raw_data
    return b"\0".join(tensor.string_data) or numpy_helper.to_array(tensor).tobytes()


def assert_holds(graph: OnnxGraph, expected: onnx.ModelProto) -> None:
    """The graph's structure and every tensor's bytes are those of a whole message."""
    ours, theirs = all_tensors(graph.model), all_tensors(expected)
    assert [without_data(tensor) for tensor in ours] == [without_data(tensor) for tensor in theirs]
    for our, their in zip(ours, theirs, strict=True):
        stored = graph.store.get(our)
        data = raw(our) if stored is None else b"".join(bytes(block) for block in stored.content.blocks())
        assert data == raw(their), our.name
        assert stored is None or stored.content.nbytes == len(data)
    whole = onnx.ModelProto()
    whole.CopyFrom(graph.model)
    for our, their in zip(all_tensors(whole), theirs, strict=True):
        our.CopyFrom(their)
    assert whole == expected


@pytest.mark.parametrize("build", EVERYWHERE + NOT_IN_THE_IR)
def test_a_file_loads_as_onnx_loads_it(build, tmp_path):
    onnx.save(build(), tmp_path / "m.onnx")

    assert_holds(load_model(tmp_path / "m.onnx"), onnx.load(tmp_path / "m.onnx"))


@pytest.mark.parametrize("build", EVERYWHERE + NOT_IN_THE_IR)
def test_a_message_loads_without_being_modified(build):
    source = build()
    before = onnx.ModelProto()
    before.CopyFrom(source)

    graph = load_model(source)

    assert_holds(graph, before)
    assert source == before


@pytest.mark.parametrize("build", EVERYWHERE)
def test_an_ir_model_loads_without_being_modified(build):
    expected = build()
    source = onnx_ir.from_proto(expected)
    before = onnx_ir.to_proto(source)

    graph = load_model(source)

    assert_holds(graph, expected)
    assert onnx_ir.to_proto(source) == before


@pytest.mark.parametrize("kind", ["file", "message", "ir"])
def test_big_tensors_are_not_in_the_message(kind, tmp_path):
    whole = model([constant("y", floats("", 500, 500))], [floats("w", 1000, 100), floats("small", 10)])
    onnx.save(whole, tmp_path / "m.onnx")
    source = {"file": tmp_path / "m.onnx", "message": whole, "ir": onnx_ir.from_proto(whole)}[kind]

    graph = load_model(source)

    assert sorted(entry.content.nbytes for entry in graph.store.entries) == [400_000, 1_000_000]
    assert not any(entry.external for entry in graph.store.entries)
    assert len(graph.model.SerializeToString()) < 1000


def test_only_a_file_is_listed_as_input(tmp_path, monkeypatch):
    whole = model(initializers=[floats("w", 64, 64)])
    onnx.save(whole, tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)

    assert load_model("m.onnx").inputs == (tmp_path.resolve() / "m.onnx",)
    assert load_model(whole).inputs == ()


def test_a_loaded_file_is_read_after_the_current_folder_changed(tmp_path, monkeypatch):
    onnx.save(model(initializers=[floats("w", 64, 64)]), tmp_path / "m.onnx")
    monkeypatch.chdir(tmp_path)
    graph = load_model("m.onnx")
    monkeypatch.chdir("/")

    assert_holds(graph, onnx.load(tmp_path / "m.onnx"))


def test_bytes_can_be_read_from_any_place_more_than_once(tmp_path):
    values = np.arange(5000, dtype=np.float32)
    whole = model(initializers=[numpy_helper.from_array(values, "w")])
    onnx.save(whole, tmp_path / "m.onnx")

    for source in (tmp_path / "m.onnx", whole, onnx_ir.from_proto(whole)):
        content = load_model(source).store.entries[0].content
        part = np.empty(40, np.uint8)
        for start in (400, 19_960, 0):
            content.read_into(start, part)
            assert part.tobytes() == values.tobytes()[start : start + 40]
            content.close()


def test_a_lazy_ir_tensor_is_evaluated_only_when_it_is_read():
    calls = []

    def evaluate() -> onnx_ir.Tensor:
        calls.append(1)
        return onnx_ir.tensor(np.full((64, 64), 2, np.float32), name="w")

    value = onnx_ir.Value(name="w")
    value.const_value = onnx_ir.LazyTensor(
        evaluate, dtype=onnx_ir.DataType.FLOAT, shape=onnx_ir.Shape([64, 64]), name="w"
    )
    graph = onnx_ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 17}, name="g")

    store = load_model(onnx_ir.Model(graph, ir_version=8)).store

    assert not calls
    assert b"".join(bytes(block) for block in store.entries[0].content.blocks()) == np.full(4096, 2, "<f4").tobytes()
    assert calls


def test_an_ir_tensor_that_is_named_differently_from_its_value_keeps_its_own_name():
    tensors = [onnx_ir.tensor(np.ones(3, np.float32), name="own"), onnx_ir.tensor(np.ones(9000, np.int8), name="own2")]
    values = [onnx_ir.Value(name="small"), onnx_ir.Value(name="big")]
    for value, tensor in zip(values, tensors, strict=True):
        value.const_value = tensor
    graph = onnx_ir.Graph([], [], nodes=[], initializers=values, opset_imports={"": 17}, name="g")

    loaded = load_model(onnx_ir.Model(graph, ir_version=8))

    assert [tensor.name for tensor in loaded.model.graph.initializer] == ["small", "big"]
    assert [tensor.name for tensor in tensors] == ["own", "own2"]


def test_four_bit_ir_tensors_are_stored_packed():
    packed = bytes(range(256)) * 20
    tensor = helper.make_tensor("w", TensorProto.INT4, [2 * len(packed)], packed, raw=True)

    store = load_model(onnx_ir.from_proto(model(initializers=[tensor]))).store

    assert b"".join(bytes(block) for block in store.entries[0].content.blocks()) == packed


def test_another_object_is_an_error_that_says_what_is_expected():
    with pytest.raises(ArgumentError, match=r"path of an \.onnx file.*got GraphProto"):
        load_model(onnx.GraphProto())


def test_the_store_reads_files_in_place(tmp_path):
    onnx.save(model(initializers=[floats("w", 64, 64)]), tmp_path / "m.onnx")

    content = load_model(tmp_path / "m.onnx").store.entries[0].content

    assert isinstance(content, FileRange)
    expected = onnx.load(tmp_path / "m.onnx").graph.initializer[0].raw_data
    assert (tmp_path / "m.onnx").read_bytes()[content.offset :][: content.nbytes] == expected
