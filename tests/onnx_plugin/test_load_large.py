"""Loading large models: in memory that does not depend on their weights."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from onnx import TensorProto, helper


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory in use from /proc")
def test_a_model_beyond_two_gigabytes_loads_in_little_memory(tmp_path):
    count, nbytes = 8, 275 << 20
    path = tmp_path / "big.onnx"
    _write_sparse_model(path, count, nbytes)
    script = (
        "import sys\n"
        "import twinquant_onnx.load as load\n"
        "def held():\n"
        "    lines = open('/proc/self/status').readlines()\n"
        "    return int(next(line for line in lines if line.startswith('VmRSS:')).split()[1]) * 1024\n"
        "before = held()\n"
        "graph = load.load_model(sys.argv[1])\n"
        "content = graph.store.entries[-1].content\n"
        "last = bytes(list(content.blocks())[-1])[-1]\n"
        "print(len(graph.store.entries), content.nbytes, last, held() - before)\n"
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
