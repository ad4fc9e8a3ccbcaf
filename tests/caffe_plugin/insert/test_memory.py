"""Saving a net takes a fraction of its weights' size in memory."""

import subprocess
import sys

import numpy as np
import pytest
from nets import read_prototxt

resource = pytest.importorskip("resource")

MEASURE = """
import resource, sys
import numpy as np
from twin_nets import save
from pathlib import Path
source, folder = (Path(argument) for argument in sys.argv[1:])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
save((source.with_suffix(".prototxt"), source), folder, {"fc": (0.02, 3, [0.001])})
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""

NET = """
input: "x" input_shape { dim: 1 dim: 16384 }
layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc"
  inner_product_param { num_output: 4096 bias_term: false } }
"""


@pytest.mark.heavy
def test_saving_256_mb_of_weights_takes_less_than_64_mb(tmp_path):
    (tmp_path / "big.prototxt").write_text(NET)
    weight = np.random.default_rng(0).standard_normal((4096, 16384), np.float32) * np.float32(0.05)

    def field(number, *parts):
        length, encoded = sum(map(len, parts)), b""
        while length > 0x7F:
            encoded, length = encoded + bytes([length & 0x7F | 0x80]), length >> 7
        tag = bytes([number << 3 | 2]) if number < 16 else bytes([number << 3 & 0x7F | 2 | 0x80, number >> 4])
        return [tag, encoded + bytes([length]), *parts]

    shape = field(7, b"".join(field(1, b"\x80\x20\x80\x80\x01")))
    blob = field(7, b"".join(shape), *field(5, memoryview(weight).cast("B")))
    with (tmp_path / "big.caffemodel").open("wb") as file:
        for part in field(100, *field(1, b"fc"), *field(2, b"InnerProduct"), *blob):
            file.write(part)
    command = [sys.executable, "-c", MEASURE, str(tmp_path / "big.caffemodel"), str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True, check=False, env=_environment())
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 64
    assert (tmp_path / "out" / "net_deploy_weights.caffemodel").stat().st_size > weight.size
    assert [layer.type for layer in read_prototxt(tmp_path / "out" / "net_deploy_model.prototxt").layer] == [
        *("Input", "Quant", "InnerProduct", "DeQuant"),
    ]


def _environment():
    import os
    from pathlib import Path

    return {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
