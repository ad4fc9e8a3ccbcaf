import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from twinquant_onnx.encode import encode_model
from twinquant_onnx.graph import TensorStore
from twinquant_onnx.tensors import ArrayBytes

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
CONDITION = helper.make_tensor_value_info("c", TensorProto.BOOL, [])


def array(seed):
    return np.random.default_rng(seed).standard_normal((3, 5), dtype=np.float32)


def tensor(name, seed):
    return numpy_helper.from_array(array(seed), name)


def sparse(name, seed):
    return helper.make_sparse_tensor(
        tensor(name, seed), numpy_helper.from_array(np.arange(15, dtype=np.int64), name + ".indices"), [100]
    )


def model_of(*nodes, initializers=(), sparse_initializers=(), functions=()):
    graph = helper.make_graph(
        list(nodes), "g", [X], [Y], initializers, "doc of the graph", sparse_initializer=sparse_initializers
    )
    model = helper.make_model(
        graph,
        functions=list(functions),
        producer_name="a tool",
        opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("own", 1)],
    )
    helper.set_model_props(model, {"one": "1", "two": "2"})
    return model


def stored(model, *tensors_of):
    """Return a copy of a model whose tensors, picked by functions, are in a store."""
    skeleton, store = onnx.ModelProto(), TensorStore()
    skeleton.CopyFrom(model)
    for pick in tensors_of:
        proto = pick(skeleton)
        store.attach(proto, ArrayBytes(numpy_helper.to_array(proto)))
    return skeleton, store


def joined(encoded):
    parts = (
        piece if isinstance(piece, bytes) else b"".join(b.tobytes() for b in piece.blocks()) for piece in encoded.pieces
    )
    data = b"".join(parts)
    assert len(data) == encoded.nbytes
    return data


def branch(name):
    return helper.make_graph([helper.make_node("Constant", [], ["y"], name, value=tensor("", 5))], name, [], [Y])


FUNCTION = helper.make_function(
    "own",
    "Shift",
    ["a"],
    ["b"],
    [helper.make_node("Constant", [], ["k"], value=tensor("", 6)), helper.make_node("Add", ["a", "k"], ["b"])],
    [helper.make_opsetid("", 17)],
)

PLACES = {
    "an initializer": (
        model_of(helper.make_node("Add", ["x", "w"], ["y"]), initializers=[tensor("v", 1), tensor("w", 2)]),
        [lambda m: m.graph.initializer[1]],
    ),
    "every initializer": (
        model_of(helper.make_node("Add", ["v", "w"], ["y"]), initializers=[tensor("v", 1), tensor("w", 2)]),
        [lambda m: m.graph.initializer[0], lambda m: m.graph.initializer[1]],
    ),
    "a Constant node between others": (
        model_of(
            helper.make_node("Neg", ["x"], ["n"], "first"),
            helper.make_node("Constant", [], ["k"], "second", value=tensor("", 3)),
            helper.make_node("Add", ["n", "k"], ["y"], "third"),
        ),
        [lambda m: m.graph.node[1].attribute[0].t],
    ),
    "an attribute of several tensors": (
        model_of(helper.make_node("Own", ["x"], ["y"], domain="own", list=[tensor("a", 3), tensor("b", 4)], n=1)),
        [lambda m: next(a for a in m.graph.node[0].attribute if a.name == "list").tensors[1]],
    ),
    "a sparse attribute": (
        model_of(helper.make_node("Constant", [], ["y"], sparse_value=sparse("", 3))),
        [lambda m: m.graph.node[0].attribute[0].sparse_tensor.values],
    ),
    "a sparse initializer": (
        model_of(helper.make_node("Neg", ["s"], ["y"]), sparse_initializers=[sparse("s", 3)]),
        [lambda m: m.graph.sparse_initializer[0].values, lambda m: m.graph.sparse_initializer[0].indices],
    ),
    "a subgraph": (
        model_of(helper.make_node("If", ["c"], ["y"], then_branch=branch("then"), else_branch=branch("else"))),
        [lambda m: next(a for a in m.graph.node[0].attribute if a.name == "else_branch").g.node[0].attribute[0].t],
    ),
    "a subgraph of a subgraph": (
        model_of(
            helper.make_node(
                "If",
                ["c"],
                ["y"],
                then_branch=helper.make_graph(
                    [helper.make_node("If", ["c"], ["y"], then_branch=branch("a"), else_branch=branch("b"))],
                    "outer",
                    [],
                    [Y],
                ),
                else_branch=branch("else"),
            ),
            initializers=[tensor("w", 2)],
        ),
        [
            lambda m: m.graph.initializer[0],
            lambda m: (
                sorted(
                    sorted(m.graph.node[0].attribute, key=lambda a: a.name)[1].g.node[0].attribute, key=lambda a: a.name
                )[0]
                .g.node[0]
                .attribute[0]
                .t
            ),
        ],
    ),
    "a function": (
        model_of(helper.make_node("Shift", ["x"], ["y"], domain="own"), functions=[FUNCTION]),
        [lambda m: m.functions[0].node[0].attribute[0].t],
    ),
    "nowhere": (model_of(helper.make_node("Neg", ["x"], ["y"])), []),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_stored_tensor_is_written_back_wherever_it_stands(place):
    model, tensors_of = PLACES[place]
    assert onnx.ModelProto.FromString(joined(encode_model(*stored(model, *tensors_of)))) == model


def test_the_message_that_is_encoded_is_not_changed():
    model, tensors_of = PLACES["a subgraph of a subgraph"]
    skeleton, store = stored(model, *tensors_of)
    before = skeleton.SerializeToString(deterministic=True)
    encode_model(skeleton, store)
    assert skeleton.SerializeToString(deterministic=True) == before


def test_two_encodings_of_a_model_are_equal():
    model, tensors_of = PLACES["a subgraph of a subgraph"]
    skeleton, store = stored(model, *tensors_of)
    assert joined(encode_model(skeleton, store)) == joined(encode_model(skeleton, store))


def top_level_fields(data):
    """Return (field number, payload) of a message whose fields are varints or length-delimited."""

    def varint(position):
        value = shift = 0
        while True:
            byte = data[position]
            value, shift, position = value | (byte & 127) << shift, shift + 7, position + 1
            if byte < 128:
                return value, position

    found, position = [], 0
    while position < len(data):
        tag, position = varint(position)
        assert tag & 7 in (0, 2)
        value, position = varint(position)
        payload = data[position : position + value] if tag & 7 == 2 else value
        position += value if tag & 7 == 2 else 0
        found.append((tag >> 3, payload))
    return found


def test_the_file_holds_one_graph_field_and_a_tensor_one_data_field():
    model, tensors_of = PLACES["every initializer"]
    data = joined(encode_model(*stored(model, *tensors_of)))
    graphs = [payload for number, payload in top_level_fields(data) if number == 7]
    assert len(graphs) == 1
    tensors = [payload for number, payload in top_level_fields(graphs[0]) if number == 5]
    assert [[payload for number, payload in top_level_fields(t) if number == 9] for t in tensors] == [
        [array(1).tobytes()],
        [array(2).tobytes()],
    ]


def test_fields_that_this_version_of_onnx_does_not_know_are_kept():
    original, tensors_of = PLACES["a Constant node between others"]
    model = onnx.ModelProto()
    model.CopyFrom(original)
    unknown = b"\xfa\x3f\x03new"  # field 1023, three bytes
    for part in (model, model.graph, model.graph.node[1], model.graph.node[1].attribute[0].t):
        part.MergeFromString(unknown)
    encoded = joined(encode_model(*stored(model, *tensors_of)))
    assert encoded.count(unknown) == 4
    assert onnx.ModelProto.FromString(encoded) == model


def test_an_empty_stored_tensor_keeps_its_empty_data():
    model = model_of(
        helper.make_node("Neg", ["x"], ["y"]),
        initializers=[helper.make_tensor("empty", TensorProto.FLOAT, [0, 3], b"", raw=True)],
    )
    encoded = encode_model(*stored(model, lambda m: m.graph.initializer[0]))
    assert onnx.ModelProto.FromString(joined(encoded)) == model


def test_sizes_around_the_steps_of_the_length_prefix_are_right():
    for size in (0, 127, 128, 16383, 16384, 2097151, 2097152):
        model = model_of(initializers=[numpy_helper.from_array(np.zeros(size, np.uint8), "w")])
        data = joined(encode_model(*stored(model, lambda m: m.graph.initializer[0])))
        assert onnx.ModelProto.FromString(data) == model
