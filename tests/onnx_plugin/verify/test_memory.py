"""Verifying does not need the memory that the models take."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

SIDE, LAYERS = 3000, 9

SCRIPT = """
import sys
from pathlib import Path
from twinquant_onnx.verify import verify_twins
report = verify_twins(Path(sys.argv[1]), Path(sys.argv[2]))
# Not getrusage: its peak starts with that of the process this one was started from.
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1]
print(report.agree, len(report.layers), peak)
"""


@pytest.mark.heavy
@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of memory from /proc")
def test_a_pair_larger_than_its_memory_is_verified(twins, builder, tmp_path):
    b = builder(0)
    names = ["x", *(f"t{i}" for i in range(LAYERS))]
    tensors = []
    for i in range(LAYERS):
        b.add("MatMul", f"{names[i]} w{i}", names[i + 1], f"mm{i}")
        b.quantize(f"mm{i}", 0.004)
        (b.random.random((SIDE, SIDE), np.float32) - np.float32(0.5)).tofile(tmp_path / f"w{i}.bin")
        tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[SIDE, SIDE])
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=f"w{i}.bin")
        tensors.append(tensor)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, SIDE]) for name in (names[0], names[-1]))
    graph = helper.make_graph(b.nodes, "g", [x], [y], tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), tmp_path / "m.onnx")
    fake, deploy = twins.save_model(tmp_path / "m.onnx", "".join(b.records))

    done = subprocess.run([sys.executable, "-c", SCRIPT, fake, deploy], capture_output=True, text=True, check=True)

    agree, layers, peak = done.stdout.split()
    assert (agree, layers) == ("True", str(LAYERS))
    assert int(peak) * 1024 < 4 * SIDE * SIDE * LAYERS
