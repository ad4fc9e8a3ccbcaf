"""Fused weights are computed where they are read: at any place, in any order, without being whole in memory."""

import tracemalloc

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from twinquant.errors import ModelContentError
from twinquant.outputs import Flavor
from twinquant.plan import build_plan
from twinquant.records import LayerRecord, RecordSet
from twinquant_onnx.fuse import fuse_model
from twinquant_onnx.fuse.weight import FusedWeight
from twinquant_onnx.insert import build_twin
from twinquant_onnx.layers import analyse
from twinquant_onnx.load import load_model
from twinquant_onnx.tensors import ArrayBytes, FileRange, RandomAccess
from twinquant_onnx.write import write_model


def fused(weight, scale, *, transposed=False, group=1):
    return FusedWeight(
        ArrayBytes(weight),
        weight.dtype,
        weight.shape,
        np.asarray(scale, np.float64),
        transposed=transposed,
        group=group,
        label="layer 'conv': the weight 'w'",
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize(("transposed", "group"), [(False, 1), (True, 1), (True, 2)])
def test_any_range_of_bytes_can_be_read(rng, dtype, transposed, group):
    weight = rng.normal(size=(4, 6, 3, 2)).astype(dtype)
    scale = rng.uniform(0.5, 2, 6 * group if transposed else 4)
    if transposed:
        # Output channel g * 6 + j is column j of the rows of group g.
        factors = np.repeat(scale.reshape(group, 6), 4 // group, axis=0)[:, :, None, None]
    else:
        factors = scale[:, None, None, None]
    wide = np.float32 if dtype is np.float16 else dtype
    expected = np.frombuffer((weight.astype(wide) * factors.astype(wide)).astype(dtype).tobytes(), np.uint8)
    source = fused(weight, scale, transposed=transposed, group=group)
    assert source.nbytes == expected.size
    np.testing.assert_array_equal(np.concatenate([block.copy() for block in source.blocks()]), expected)
    for _ in range(50):
        start, stop = np.sort(rng.integers(0, expected.size + 1, 2))
        if start == stop:
            continue
        out = np.empty(stop - start, np.uint8)
        source.read_into(int(start), out)
        np.testing.assert_array_equal(out, expected[start:stop])


def test_blocks_longer_than_the_arithmetic_ones(rng):
    weight = rng.normal(size=(3, 70_001)).astype(np.float32).reshape(3, 70_001, 1)
    scale = np.array([2.0, 0.5, 4.0])
    out = np.empty(weight.nbytes, np.uint8)
    fused(weight, scale).read_into(0, out)
    np.testing.assert_array_equal(out.view(np.float32).reshape(3, -1), weight[:, :, 0] * [[2], [0.5], [4]])


def test_float16_that_overflows_is_an_error_that_says_what_to_do():
    weight = np.full((2, 3, 1, 1), 60000, np.float16)
    with pytest.raises(ModelContentError, match=r"layer 'conv': the weight 'w' overflows float16.*skip_fusion_layers"):
        list(fused(weight, [1, 2]).blocks())


def test_an_infinity_of_the_weight_itself_is_passed_on():
    weight = np.full((2, 3, 1, 1), np.inf, np.float16)
    (block,) = fused(weight, [1, 2]).blocks()
    assert np.isinf(block.view(np.float16)).all()


@pytest.fixture
def big_file(kit, tmp_path):
    """A model of one convolution with 64 MB of weights and a Mul behind it."""
    weight = np.ones((64, 4096, 8, 8), np.float32)
    constants = {"w": weight, "m": np.full((64, 1, 1), 3, np.float32)}
    nodes = [kit.convolution(), helper.make_node("Mul", ["c", "m"], ["y"], name="mul")]
    path = tmp_path / "big.onnx"
    path.write_bytes(kit.model(nodes, constants, inputs={"x": (1, 4096, 8, 8)}).SerializeToString())
    return path


def test_fusing_reads_no_weight_and_keeps_none_in_memory(big_file):
    loaded = load_model(str(big_file))
    tracemalloc.start()
    try:
        graph, _ = fuse_model(loaded)
        (tensor,) = [tensor for tensor in graph.model.graph.initializer if tensor.name == "w"]
        content = graph.store.get(tensor).content
        total = sum(float(block.view(np.float32).sum()) for block in content.blocks())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(content, RandomAccess)
    assert isinstance(loaded.store.get(loaded.model.graph.initializer[0]).content, FileRange)
    assert total == 3 * 64 * 4096 * 64
    assert peak < 8 << 20


def test_quantization_reads_the_fused_weight(kit, rng, tmp_path):
    weight = rng.normal(size=(6, 4, 3, 3)).astype(np.float32)
    factor = np.array([1, 2, 0.5, 4, 8, 0.25], np.float32)
    nodes = [kit.convolution(), helper.make_node("Mul", ["c", "m"], ["y"], name="mul")]
    graph, _ = fuse_model(load_model(kit.model(nodes, {"w": weight, "m": factor.reshape(6, 1, 1)})))
    loaded = analyse(graph)
    scale_w = (np.abs(weight).max((1, 2, 3)) * factor / 127).astype(np.float32)
    record = LayerRecord("conv", scale_d=0.05, offset_d=0, scale_w=scale_w, offset_w=np.zeros(6, np.int32))
    plan = build_plan(RecordSet({"conv": record}), loaded.layers, "onnx")
    (path, *_) = write_model(build_twin(loaded, plan, Flavor.DEPLOY), tmp_path, "", "deploy")
    tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
    fused_weight = weight * factor[:, None, None, None]
    expected = np.clip(np.rint(fused_weight / scale_w[:, None, None, None]), -128, 127)
    np.testing.assert_array_equal(tensors["w"], expected.astype(np.int8))
