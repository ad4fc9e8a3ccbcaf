"""How long reading and writing a Caffe net takes, and how much memory, compared with protobuf on the same caffemodel.

Run:  python benchmarks/caffe_streaming.py          (half a minute, 1.7 GB of disk; --size 0.25 for less)

The net has the shapes of VGG-16 and random weights. Protobuf parses the caffemodel with a schema of its few fields and
serializes it again, which is what a program has to do that keeps a net in messages. Every measurement is a process of
its own; the best of several counts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MB = 1_000_000
MOST_MEMORY = 1.5, 200 * MB
"""Peak memory stays under so many times the file plus so many bytes."""

CONVOLUTIONS = (64,) * 2 + (128,) * 2 + (256,) * 3 + (512,) * 6
POOLED = (1, 3, 6, 9, 12)
FULLY_CONNECTED = (4096, 4096, 1000)


def build(folder: Path, size: float) -> dict[str, float]:
    from twinquant.wire import encode_varint, header

    text, channels = ['name: "vgg"\ninput: "x0"\ninput_shape { dim: [1, 3, 224, 224] }\n'], 3
    with (folder / "net.caffemodel").open("wb") as file:

        def layer(index: int, kind: str, parameters: str, *shape: int) -> None:
            name = f"layer{index}"
            text.append(
                f'layer {{\n  name: "{name}"\n  type: "{kind}"\n  bottom: "x{index}"\n  top: "x{index + 1}"\n'
                f"  {parameters}\n}}\n"
            )
            blobs = []
            for lengths in (shape, shape[:1]):
                count = 1
                for length in lengths:
                    count *= length
                dims = b"".join(map(encode_varint, lengths))
                dims = header(1, len(dims)) + dims
                blobs.append((header(7, len(dims)) + dims + header(5, 4 * count), 4 * count))
            start = header(1, len(name)) + name.encode()
            total = len(start)
            for head, payload in blobs:
                total += len(header(7, len(head) + payload)) + len(head) + payload
            file.write(header(100, total) + start)
            for head, payload in blobs:
                file.write(header(7, len(head) + payload) + head)
                for first in range(0, payload, MB):
                    file.write(os.urandom(min(MB, payload - first)))

        for index, filters in enumerate(max(8, round(size * n)) for n in CONVOLUTIONS):
            parameters = f"convolution_param {{ num_output: {filters} kernel_size: 3 pad: 1 }}"
            layer(index, "Convolution", parameters, filters, channels, 3, 3)
            channels = filters
        channels *= 49
        for index, outputs in enumerate((max(8, round(size * n)) for n in FULLY_CONNECTED), len(CONVOLUTIONS)):
            layer(index, "InnerProduct", f"inner_product_param {{ num_output: {outputs} }}", outputs, channels)
            channels = outputs
    (folder / "net.prototxt").write_text("".join(text))
    return {"bytes": (folder / "net.caffemodel").stat().st_size}


def ours(folder: Path) -> dict[str, float]:
    from twinquant_caffe.load import load_net
    from twinquant_caffe.write import write_net

    start = time.perf_counter()
    net = load_net(folder / "net.prototxt")
    loaded = time.perf_counter() - start
    write_net(net, folder, "ours.prototxt", "ours.caffemodel")
    return measured(start) | {"loaded": loaded}


def protobuf(folder: Path) -> dict[str, float]:
    message = _schema()()
    start = time.perf_counter()
    message.ParseFromString((folder / "net.caffemodel").read_bytes())
    loaded = time.perf_counter() - start
    (folder / "protobuf.caffemodel").write_bytes(message.SerializeToString())
    return measured(start) | {"loaded": loaded}


def _schema() -> Any:
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="benchmark.proto", package="benchmark", syntax="proto2")
    for name, fields in {
        "Shape": [("dim", 1, 3, "")],
        "Blob": [("data", 5, 2, ""), ("shape", 7, 11, "Shape")],
        "Layer": [("name", 1, 9, ""), ("blobs", 7, 11, "Blob")],
        "Net": [("layer", 100, 11, "Layer")],
    }.items():
        message = file.message_type.add(name=name)
        for field_name, number, kind, type_name in fields:
            field = message.field.add(name=field_name, number=number, type=kind, label=3)
            if type_name:
                field.type_name = f".benchmark.{type_name}"
            if kind in (2, 3):
                field.options.packed = True
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("benchmark.Net"))


def measured(start: float) -> dict[str, float]:
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status")
    if status.exists():
        # Unlike ru_maxrss it starts anew with the program: it leaves out what the parent held at the fork.
        peak = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return {"seconds": seconds, "peak": peak * 1024}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak": peak * (1 if sys.platform == "darwin" else 1024)}


TASKS = {"ours": ours, "protobuf": protobuf}


def child(*arguments: Any) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    result: dict[str, float] = json.loads(done.stdout)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=float, default=1.0, help="scale the net: 0.25 is a quarter (of the width)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="where the files go for a while; default: temporary")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        total = child("build", folder, arguments.size)["bytes"]
        print(f"VGG-16 shapes, {total / MB:.0f} MB")
        rounds = [{name: child(name, folder) for name in TASKS} for _ in range(arguments.rounds)]
    best = {
        name: {key: min(results[name][key] for results in rounds) for key in ("seconds", "loaded", "peak")}
        for name in TASKS
    }
    for name, values in best.items():
        print(
            f"{name:>9}: load {values['loaded']:.3f} s, load and write {values['seconds']:.2f} s, "
            f"peak {values['peak'] / MB:.0f} MB, {values['peak'] / total:.2f} times the file"
        )
    print(f"time as a multiple of protobuf's: {best['ours']['seconds'] / best['protobuf']['seconds']:.2f}")
    factor, constant = MOST_MEMORY
    peak = max(results["ours"]["peak"] for results in rounds)
    ok = peak <= factor * total + constant
    print(f"peak {peak / MB:.0f} MB (limit {(factor * total + constant) / MB:.0f} MB: {'ok' if ok else 'MISSED'})")
    return 0 if ok else 1


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        task, place, *rest = sys.argv[2:]
        result = build(Path(place), float(rest[0])) if task == "build" else TASKS[task](Path(place))
        print(json.dumps(result))
    else:
        raise SystemExit(main())
