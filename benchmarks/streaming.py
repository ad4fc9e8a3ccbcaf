"""How long save_model takes, and how much memory, compared with the floor: the least that any program has to do.

Run:  python benchmarks/streaming.py          (about two minutes, 8 GB of disk; --only vgg --size 0.25 for less)

The floor reads the input bytes once, rounds them once in blocks, and writes as many bytes as both twins have. Every
measurement is a process of its own; the best of several counts. Models have the shapes of real ones and random weights.
The clock starts after a tiny save, so that modules are loaded; what importing takes is a row of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The parent process stays small and imports no library: a child's peak memory includes what its parent had at the fork.
if TYPE_CHECKING:
    import numpy as np
    import onnx

MB = 1_000_000


@dataclass
class Case:
    """A model, and what is allowed for it."""

    title: str
    build: Callable[[Net, float], None]
    times_floor: float | None = None
    peak_mb: float | None = None


@dataclass
class Net:
    """A model under construction: a chain of layers, each with a complete record."""

    folder: Path
    external: bool = False
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    initializers: list[onnx.TensorProto] = field(default_factory=list)
    records: list[str] = field(default_factory=list)
    offset: int = 0

    def weight(self, name: str, *shape: int) -> None:
        import numpy as np
        from onnx import TensorProto, numpy_helper

        values = np.random.default_rng(len(self.initializers)).standard_normal(shape, dtype=np.float32) * 0.05
        if not self.external or len(shape) == 1:
            self.initializers.append(numpy_helper.from_array(values, name))
            return
        with (self.folder / "model.data").open("ab") as file:
            file.write(values.data)
        tensor = TensorProto(name=name, data_type=1, dims=shape, data_location=TensorProto.EXTERNAL)
        for key, value in (("location", "model.data"), ("offset", self.offset), ("length", values.nbytes)):
            tensor.external_data.add(key=key, value=str(value))
        self.offset += values.nbytes
        self.initializers.append(tensor)

    def layer(self, op: str, x: str, shape: tuple[int, ...], scales: int = 1, bias: int = 0, **attributes: Any) -> str:
        name = f"layer{len(self.records)}"
        self.weight(f"{name}.weight", *shape)
        if bias:
            self.weight(f"{name}.bias", bias)
        inputs = [x, f"{name}.weight", f"{name}.bias"][: 3 if bias else 2]
        lines = "    scale_w: 0.0015\n" * scales + "    offset_w: 0\n" * scales
        self.records.append(
            f'record {{\n  key: "{name}"\n  value {{\n    scale_d: 0.03\n    offset_d: -5\n{lines}  }}\n}}\n'
        )
        return self.node(op, inputs, name, **attributes)

    def conv(self, x: str, channels: int, filters: int, kernel: int, stride: int = 1, relu: bool = True) -> str:
        pad = kernel // 2
        shape = (filters, channels, kernel, kernel)
        y = self.layer("Conv", x, shape, filters, filters, kernel_shape=shape[2:], strides=[stride] * 2, pads=[pad] * 4)
        return self.node("Relu", [y]) if relu else y

    def node(self, op: str, inputs: list[str], name: str = "", **attributes: Any) -> str:
        from onnx import helper

        name = name or f"{op}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [f"{name}.out"], name, **attributes))
        return f"{name}.out"

    def save(self, shape: list[int], output: str) -> None:
        import onnx
        from onnx import TensorProto, helper

        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)
        y = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        graph = helper.make_graph(self.nodes, "g", [x], [y], self.initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        (self.folder / "model.onnx").write_bytes(model.SerializeToString())
        (self.folder / "record.txt").write_text("".join(self.records))
        assert onnx.load(self.folder / "model.onnx", load_external_data=False).graph.node


def width(channels: float) -> int:
    return max(8, round(channels / 8) * 8)


def stack(net: Net, size: float) -> None:
    net.external, x = True, "x"
    for _ in range(max(1, round(45 * size))):
        x = net.layer("MatMul", x, (4096, 4096))
    net.save([1, 4096], x)


def vgg(net: Net, size: float) -> None:
    x, channels = "x", 3
    for block in ((64,) * 2, (128,) * 2, (256,) * 3, (512,) * 3, (512,) * 3):
        for filters in (width(n * size) for n in block):
            x, channels = net.conv(x, channels, filters, 3), filters
        x = net.node("MaxPool", [x], kernel_shape=[2, 2], strides=[2, 2])
    x, features = net.node("Flatten", [x]), channels * 49
    for outputs in (width(4096 * size), width(4096 * size), 1000):
        x = net.layer("Gemm", x, (outputs, features), bias=outputs, transB=1)
        features = outputs
    net.save([1, 3, 224, 224], x)


def resnet(net: Net, size: float) -> None:
    x, channels = net.conv("x", 3, width(64 * size), 7, 2), width(64 * size)
    x = net.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    for stage, (filters, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        inner, outer = width(filters * size), 4 * width(filters * size)
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            y = net.conv(
                net.conv(net.conv(x, channels, inner, 1), inner, inner, 3, stride), inner, outer, 1, relu=False
            )
            shortcut = x if block else net.conv(x, channels, outer, 1, stride, relu=False)
            x, channels = net.node("Relu", [net.node("Add", [y, shortcut])]), outer
    x = net.node("Flatten", [net.node("GlobalAveragePool", [x])])
    net.save([1, 3, 224, 224], net.layer("Gemm", x, (1000, channels), bias=1000, transB=1))


def chain(nodes: int) -> Callable[[Net, float], None]:
    def build(net: Net, size: float) -> None:
        x = "x"
        for _ in range(max(1, round(nodes * size) // 2)):
            x = net.conv(x, 8, 8, 1)
        net.save([1, 8, 4, 4], x)

    return build


CASES = {
    "stack": Case("3 GB stack of MatMul, external data", stack, 2.5, 300),
    "vgg": Case("VGG-16 shapes in one file, transB = 1", vgg, 2.5, 350),
    "resnet": Case("ResNet-50 shapes", resnet, 3.0),
    "nodes2500": Case("2,500 nodes, 1,250 of them quantized", chain(2500)),
    "nodes10000": Case("10,000 nodes, 5,000 of them quantized", chain(10_000)),
}
"""By the name that --only takes."""


def build(name: str, folder: Path, size: float) -> dict[str, float]:
    CASES[name].build(Net(folder), size)
    return {"bytes": sum(path.stat().st_size for path in folder.glob("model.*"))}


def save(folder: Path) -> dict[str, float]:
    from twinquant import save_model

    tiny = folder / "out" / "tiny"
    tiny.mkdir(parents=True)
    build("nodes2500", tiny, 0.001)
    save_model(tiny / "model.onnx", tiny / "record.txt", tiny / "net")  # imports what is imported when it is needed
    start = time.perf_counter()
    save_model(folder / "model.onnx", folder / "record.txt", folder / "out" / "net")
    return measured(start)


def floor(folder: Path) -> dict[str, float]:
    import numpy as np

    (folder / "out").mkdir(exist_ok=True)
    start = time.perf_counter()
    with (
        (folder / "out/int8").open("wb", buffering=0) as int8,
        (folder / "out/float").open("wb", buffering=0) as float32,
    ):
        for path in sorted(folder.glob("model.*")):
            with path.open("rb", buffering=0) as file:
                buffer = bytearray(1 << 20)
                while count := file.readinto(buffer):
                    values = np.frombuffer(buffer, np.float32, count // 4)
                    for first in range(0, values.size, 1 << 16):
                        round_block(values[first : first + (1 << 16)], int8, float32)
    return measured(start)


def round_block(block: np.ndarray, int8: Any, float32: Any) -> None:
    import numpy as np

    with np.errstate(all="ignore"):
        np.divide(block, np.float32(0.0015), out=block)
        np.rint(block, out=block)
        np.clip(block, -128, 127, out=block)
        int8.write(block.astype(np.int8).data)
    float32.write(block.data)


def peak_memory() -> int:
    """Return the most memory that this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's peak starts with that of the process this one was started from
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measured(start: float) -> dict[str, float]:
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "peak": peak_memory()}


def imports(statement: str) -> dict[str, float]:
    start = time.perf_counter()
    exec(statement, {})
    return measured(start)


TASKS: dict[str, Callable[..., dict[str, float]]] = {
    "build": lambda name, folder, size: build(name, Path(folder), float(size)),
    "save": lambda folder: save(Path(folder)),
    "floor": lambda folder: floor(Path(folder)),
    "imports": imports,
}


def child(*arguments: Any) -> dict[str, float]:
    os.sync()
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    # Modules are compiled once, as those of an installed package are; the first round pays for it.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def best(rounds: int, *commands: tuple[Any, ...], folder: Path | None = None) -> list[tuple[float, float]]:
    """Return each command's least time, in seconds, and greatest peak memory, in bytes. The commands take turns."""
    results: list[list[dict[str, float]]] = [[] for _ in commands]
    for _ in range(rounds):
        for command, result in zip(commands, results, strict=True):
            result.append(child(*command))
            if folder:
                shutil.rmtree(folder / "out")
    return [(min(r["seconds"] for r in result), max(r["peak"] for r in result)) for result in results]


def against(value: float, limit: float | None, unit: str) -> str:
    return f"{value:.2f}{unit}" + (f" (limit {limit:g}: {'ok' if value <= limit else 'MISSED'})" if limit else "")


def run_case(name: str, folder: Path, size: float, rounds: int) -> float:
    case = CASES[name]
    total = child("build", name, folder, size)["bytes"]
    (floor_seconds, _), (seconds, peak) = best(rounds, ("floor", folder), ("save", folder), folder=folder)
    print(f"{name}: {case.title}, {total / MB:.0f} MB")
    print(
        f"    save {seconds:.2f} s, floor {floor_seconds:.2f} s, ratio "
        + against(seconds / floor_seconds, case.times_floor, "")
    )
    print("    peak " + against(peak / MB, case.peak_mb, " MB"), flush=True)
    return seconds


def run_imports(rounds: int) -> None:
    statements = ("import numpy, pluggy, google.protobuf", "import twinquant", "from twinquant import save_model")
    (base, _), *others = best(rounds, *(("imports", statement) for statement in statements))
    for statement, limit, (seconds, _) in zip(statements[1:], (1.5, None), others, strict=True):
        ratio = against(seconds / base, limit, "")
        print(f"{statement}: {seconds:.3f} s; numpy, pluggy and protobuf: {base:.3f} s; ratio {ratio}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=(*CASES, "imports"), default=(*CASES, "imports"))
    parser.add_argument("--size", type=float, default=1.0, help="scale the models: 0.25 is a quarter (of the width)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the models and twins go for a while; default: temporary")
    arguments = parser.parse_args()
    seconds = {}
    for name in arguments.only:
        if name == "imports":
            run_imports(3 * arguments.rounds)
            continue
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            seconds[name] = run_case(name, Path(folder), arguments.size, arguments.rounds)
    if {"nodes2500", "nodes10000"} <= seconds.keys():
        growth = seconds["nodes10000"] / seconds["nodes2500"]
        print(f"4 times the nodes take {growth:.2f} times as long")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps(TASKS[sys.argv[2]](*sys.argv[3:])))
    else:
        main()
