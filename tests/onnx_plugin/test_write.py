import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from twinquant.errors import ModelContentError, ModelFileError, UnsupportedModelError
from twinquant_onnx.graph import OnnxGraph, TensorStore
from twinquant_onnx.quantized import Encoding, QuantizedWeight, WeightLayout
from twinquant_onnx.tensors import ArrayBytes, FileRange, TensorBytes
from twinquant_onnx.write import write_model

X = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
Y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])


def values(seed, size):
    return np.random.default_rng(seed).standard_normal(size, dtype=np.float32)


def declare(store, name, content, *, dims=None, external=False, data_type=TensorProto.FLOAT):
    proto = TensorProto(name=name, data_type=data_type, dims=dims or [content.nbytes // 4])
    store.attach(proto, content, external=external)
    return proto


def graph_of(*tensors, nodes=(), store):
    """Return a graph that sums the tensors, which are initializers."""
    nodes = [*nodes, helper.make_node("Sum", [t.name for t in tensors] or ["x"], ["y"], "sum")]
    model = helper.make_model(helper.make_graph(nodes, "g", [X], [Y], tensors))
    return OnnxGraph(model, store)


def names(paths):
    return [path.name for path in paths]


@pytest.mark.parametrize(
    ("prefix", "word", "expected"),
    [
        ("net", "deploy", "net_deploy_model.onnx"),
        ("net", "fake_quant", "net_fake_quant_model.onnx"),
        ("", "deploy", "deploy_model.onnx"),
        ("", "fake_quant", "fake_quant_model.onnx"),
    ],
)
def test_the_model_file_is_named_after_the_prefix_and_the_twin(tmp_path, prefix, word, expected):
    store = TensorStore()
    graph = graph_of(declare(store, "w", ArrayBytes(values(1, 5))), store=store)
    assert write_model(graph, tmp_path, prefix, word) == (tmp_path / expected,)
    assert names(tmp_path.iterdir()) == [expected]


@pytest.mark.parametrize(
    ("word", "expected"), [("deploy", "conv.w_deploy.external"), ("fake_quant", "conv.w_fakequant.external")]
)
def test_an_external_tensor_gets_a_file_of_its_own_beside_the_model(tmp_path, word, expected):
    store = TensorStore()
    graph = graph_of(
        declare(store, "inside", ArrayBytes(values(1, 7))),
        declare(store, "conv.w", ArrayBytes(values(2, 7)), external=True),
        store=store,
    )
    model_path, external = write_model(graph, tmp_path, "net", word)
    assert external == tmp_path / expected
    assert external.read_bytes() == values(2, 7).tobytes()
    tensor = onnx.load(model_path, load_external_data=False).graph.initializer[1]
    assert [(entry.key, entry.value) for entry in tensor.external_data] == [
        ("location", expected),
        ("offset", "0"),
        ("length", "28"),
    ]
    loaded = onnx.load(model_path)
    assert [numpy_helper.to_array(t).tolist() for t in loaded.graph.initializer] == [
        values(1, 7).tolist(),
        values(2, 7).tolist(),
    ]
    onnx.checker.check_model(str(model_path))


def test_an_empty_external_tensor_moves_into_the_model(tmp_path):
    store = TensorStore()
    empty = declare(store, "empty", ArrayBytes(values(1, 0)), dims=[0], external=True)
    (model_path,) = write_model(graph_of(empty, store=store), tmp_path, "", "deploy")
    (tensor,) = onnx.load(model_path).graph.initializer
    assert tensor.data_location == TensorProto.DEFAULT
    assert numpy_helper.to_array(tensor).shape == (0,)


def test_external_tensors_of_constant_nodes_and_subgraphs_get_files_named_after_what_they_feed(tmp_path):
    store = TensorStore()

    def constant(output, seed):
        return helper.make_node(
            "Constant", [], [output], "c", value=declare(store, "", ArrayBytes(values(seed, 3)), external=True)
        )

    then = helper.make_graph([constant("k", 2)], "then", [], [helper.make_tensor_value_info("k", 1, [3])])
    other = helper.make_graph([constant("k", 3)], "else", [], [helper.make_tensor_value_info("k", 1, [3])])
    custom = helper.make_node(
        "Own", ["x"], ["z"], "own", domain="own", table=declare(store, "inner", ArrayBytes(values(4, 3)), external=True)
    )
    nodes = [constant("main", 1), helper.make_node("If", ["x"], ["r"], then_branch=then, else_branch=other), custom]
    model_path, *external = write_model(graph_of(nodes=nodes, store=store), tmp_path, "", "deploy")
    contents = {path.name: path.read_bytes() for path in external}
    assert sorted(contents) == [
        "k-2_deploy.external",
        "k_deploy.external",
        "main_deploy.external",
        "own.inner_deploy.external",
    ]
    assert contents["main_deploy.external"] == values(1, 3).tobytes()
    loaded = onnx.load(model_path)
    branches = {a.name: numpy_helper.to_array(a.g.node[0].attribute[0].t) for a in loaded.graph.node[1].attribute}
    assert branches["then_branch"].tolist() == values(2, 3).tolist()
    assert branches["else_branch"].tolist() == values(3, 3).tolist()


def test_two_references_to_one_stored_tensor_are_two_tensors_in_the_files(tmp_path):
    store = TensorStore()
    first = declare(store, "w", ArrayBytes(values(1, 4)), external=True)
    second = TensorProto()
    second.CopyFrom(first)
    second.name = "W"
    model_path, *external = write_model(graph_of(first, second, store=store), tmp_path, "", "deploy")
    assert names(external) == ["w_deploy.external", "W-2_deploy.external"]
    assert [numpy_helper.to_array(t).tolist() for t in onnx.load(model_path).graph.initializer] == [
        values(1, 4).tolist()
    ] * 2


def test_a_tensor_name_cannot_lead_out_of_the_folder(tmp_path):
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    store = TensorStore()
    tensors = [
        declare(store, name, ArrayBytes(values(1, 4)), external=True)
        for name in ("../up", "/tmp/absolute", "..", "sub/file", "\0")
    ]
    paths = write_model(graph_of(*tensors, store=store), folder, "", "deploy")
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == sorted(paths)
    assert {path.parent for path in paths} == {folder}


def test_the_largest_tensors_leave_first_until_the_model_file_is_small_enough(tmp_path):
    store = TensorStore()
    sizes = {"a": 1000, "b": 3000, "c": 2000, "d": 3000, "e": 900}
    graph = graph_of(*(declare(store, n, ArrayBytes(values(1, k))) for n, k in sizes.items()), store=store)
    (whole, *_) = write_model(graph, tmp_path, "whole", "deploy")
    size = whole.stat().st_size

    def leaving(limit):
        model_path, *external = write_model(graph, tmp_path, "net", "deploy", model_bytes=limit)
        assert model_path.stat().st_size < limit
        assert all(onnx.load(model_path).graph.initializer[i].dims == [k] for i, k in enumerate(sizes.values()))
        return [name.removesuffix("_deploy.external") for name in names(external)]

    assert leaving(size + 1) == []
    assert leaving(size) == ["b"]
    assert leaving(size - 4 * 3000 + 200) == ["b"]
    assert leaving(size - 4 * 3000 - 4 * 200) == ["b", "d"]
    assert leaving(size - 4 * 6000) == ["b", "d", "c"]
    assert leaving(3000) == ["b", "d", "c", "a", "e"]


def test_a_tensor_leaves_when_without_it_the_file_would_have_exactly_the_forbidden_size(tmp_path):
    store = TensorStore()
    graph = graph_of(declare(store, "a", ArrayBytes(values(1, 1000))), store=store)
    (whole,) = write_model(graph, tmp_path, "whole", "deploy")
    assert len(write_model(graph, tmp_path, "net", "deploy", model_bytes=whole.stat().st_size)) == 2


def test_a_model_that_is_too_large_even_without_its_tensors_is_refused(tmp_path):
    store = TensorStore()
    graph = graph_of(declare(store, "a", ArrayBytes(values(1, 1000))), store=store)
    with pytest.raises(UnsupportedModelError, match="has to stay below 50"):
        write_model(graph, tmp_path, "net", "deploy", model_bytes=50)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("external", [False, True])
def test_a_quantized_weight_is_computed_into_its_place(tmp_path, external):
    weight = values(1, 300 * 500).reshape(300, 500)
    store = TensorStore()
    content = QuantizedWeight(
        ArrayBytes(weight),
        TensorProto.FLOAT,
        weight.shape,
        np.array([0.02], np.float32),
        8,
        layout=WeightLayout.OUTPUT_FIRST,
        encoding=Encoding.INT8,
        label="the weight",
        transpose=True,
    )
    tensor = declare(store, "w", content, dims=content.dims, data_type=content.data_type, external=external)
    model_path, *_ = write_model(graph_of(tensor, store=store), tmp_path, "", "deploy")
    (loaded,) = onnx.load(model_path).graph.initializer
    expected = np.clip(np.rint(weight.T / np.float32(0.02)), -128, 127).astype(np.int8)
    np.testing.assert_array_equal(numpy_helper.to_array(loaded), expected)


def test_a_weight_that_is_no_number_ends_the_writing_with_its_error(tmp_path):
    weight = np.full((2, 2), np.nan, np.float32)
    store = TensorStore()
    content = QuantizedWeight(
        ArrayBytes(weight),
        TensorProto.FLOAT,
        (2, 2),
        np.ones(1, np.float32),
        8,
        layout=WeightLayout.INPUT_FIRST,
        encoding=Encoding.INT8,
        label="layer 'fc': the weight 'w'",
    )
    with pytest.raises(ModelContentError, match="layer 'fc'"):
        write_model(graph_of(declare(store, "w", content), store=store), tmp_path, "", "deploy")


def test_a_source_that_became_shorter_is_an_error(tmp_path):
    source = tmp_path / "source.bin"
    source.write_bytes(bytes(4000))
    store = TensorStore()
    graph = graph_of(declare(store, "w", FileRange(source, 0, 4000)), store=store)
    source.write_bytes(bytes(3999))
    with pytest.raises(ModelFileError, match="truncated"):
        write_model(graph, tmp_path, "", "deploy")


@pytest.mark.parametrize("yielded", [99, 101])
def test_a_source_that_yields_another_number_of_bytes_than_announced_is_an_error(tmp_path, yielded):
    class Wrong(TensorBytes):
        nbytes = 100

        def blocks(self):
            yield np.zeros(yielded, np.uint8)

    store = TensorStore()
    graph = graph_of(declare(store, "w", Wrong()), store=store)
    with pytest.raises(ModelFileError, match=f"100 bytes yields {yielded} bytes"):
        write_model(graph, tmp_path, "", "deploy")


def test_the_graph_that_is_written_is_not_changed(tmp_path):
    store = TensorStore()
    graph = graph_of(
        declare(store, "a", ArrayBytes(values(1, 1000))),
        declare(store, "b", ArrayBytes(values(1, 100)), external=True),
        store=store,
    )
    before = graph.model.SerializeToString(deterministic=True)
    write_model(graph, tmp_path, "", "deploy", model_bytes=1000)
    assert graph.model.SerializeToString(deterministic=True) == before
    assert len(store.entries) == 2


def test_writing_twice_gives_the_same_bytes(tmp_path):
    store = TensorStore()
    graph = graph_of(
        *(declare(store, f"w{i}", ArrayBytes(values(i, 200)), external=i % 2 == 0) for i in range(6)), store=store
    )
    contents = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        folder.mkdir()
        paths = write_model(graph, folder, "net", "deploy", model_bytes=2500)
        contents.append([(path.name, path.read_bytes()) for path in paths])
    assert contents[0] == contents[1]


def test_a_full_disk_is_an_os_error(tmp_path):
    (tmp_path / "deploy_model.onnx").symlink_to("/dev/full")
    store = TensorStore()
    graph = graph_of(declare(store, "w", ArrayBytes(values(1, 100_000))), store=store)
    with pytest.raises(OSError, match="No space left"):
        write_model(graph, tmp_path, "", "deploy")
