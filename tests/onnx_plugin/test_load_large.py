"""Loading large models: in time linear in their nodes, and in memory that does not depend on their weights."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from twinquant_onnx.load import load_model


def test_ten_thousand_nodes_load_in_a_moment(tmp_path):
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"], name=f"n{i}") for i in range(10_000)]
    weights = [numpy_helper.from_array(np.ones(16, np.float32), f"w{i}") for i in range(10_000)]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", [], [], weights)), tmp_path / "m.onnx")
    load_model(tmp_path / "m.onnx")

    start = time.process_time()
    load_model(tmp_path / "m.onnx")

    assert time.process_time() - start < 1


@pytest.mark.heavy
def test_a_model_beyond_two_gigabytes_loads_in_little_memory(tmp_path):
    count, nbytes = 8, 275 << 20
    path = tmp_path / "big.onnx"
    _write_sparse_model(path, count, nbytes)
    script = (
        "import sys, psutil\n"
        "import twinquant_onnx.load as load\n"
        "before = psutil.Process().memory_info().rss\n"
        "graph = load.load_model(sys.argv[1])\n"
        "content = graph.store.entries[-1].content\n"
        "last = bytes(list(content.blocks())[-1])[-1]\n"
        "print(len(graph.store.entries), content.nbytes, last, psutil.Process().memory_info().rss - before)\n"
    )

    done = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, check=True)

    entries, size, last, grown = map(int, done.stdout.split())
    assert path.stat().st_size > 1 << 31
    assert (entries, size, last) == (count, nbytes, 255)
    assert grown < 100 << 20


def _write_sparse_model(path: Path, count: int, nbytes: int) -> None:
    """Write a model of int8 tensors whose zeros take no space on the disk; the last byte of each is 255."""

    def field(number: int, length: int) -> bytes:
        out, tag = bytearray(), number << 3 | 2
        for value in (tag, length):
            while value > 127:
                out.append(value & 127 | 128)
                value >>= 7
            out.append(value)
        return bytes(out)

    heads = []
    for index in range(count):
        rest = TensorProto(name=f"w{index}", data_type=TensorProto.INT8, dims=[nbytes]).SerializeToString()
        head = rest + field(9, nbytes)
        heads.append(field(5, len(head) + nbytes) + head)
    rest = helper.make_graph([], "g", [], []).SerializeToString()
    total = len(rest) + sum(map(len, heads)) + count * nbytes
    with path.open("wb") as file:
        file.write(b"\x08\x08" + field(7, total) + rest)
        for head in heads:
            file.write(head)
            file.seek(nbytes - 1, 1)
            file.write(b"\xff")
