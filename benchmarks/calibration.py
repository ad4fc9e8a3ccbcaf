"""How long calibration takes, and how much memory, compared with bare inference and with ONNX Runtime's calibration.

Run:  python benchmarks/calibration.py        (10 minutes; --models resnet18 --algorithms ifmr hfmg for less)

Every measurement is a process of its own, over the same seeded images, one a batch, with the threads that ONNX Runtime
chooses by itself. Time is processor time, which other programs on the machine disturb least; the least of several
rounds counts. It starts with the model in a file; modules are loaded before.

* bare: one session, one run for each image. This is the floor.
* quantize_static: `onnxruntime.quantization.quantize_static` with its default options, on the model in which ONNX
  Runtime has folded BatchNormalization before. It observes more tensors than those that convolutions and matrix
  products read, and ends with a quantized model.
* twinquant: `twinquant.calibrate`, which folds BatchNormalization, observes and ends with a record.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streaming import peak_memory

# The parent process stays small and imports no library: a child's peak memory includes what its parent had at the fork.
if TYPE_CHECKING:
    import numpy as np

MB = 1_000_000
Case = tuple[str, str]

MODELS = ("resnet18", "resnet50")
ALGORITHMS = ("minmax", "percentile", "entropy", "ifmr", "hfmg", "mse")
PEERS = {"minmax": "MinMax", "percentile": "Percentile", "entropy": "Entropy"}
# Those with the largest state; going through so many images takes a while.
LONG = ("ifmr", "hfmg")
TIMES_BARE = {"minmax": 1.5, "ifmr": 3.0, "hfmg": 3.0}
OF_PEER_TIME, OF_PEER_MEMORY, MORE_MEMORY = 0.5, 1 / 3, 1.05


def images_of(path: str, count: int) -> Iterator[np.ndarray]:
    """Read one image after the other; the file is not mapped, so that its pages do not count as memory."""
    import numpy as np

    header = np.load(path, mmap_mode="r")
    shape, start = header.shape, header.offset
    size = header[0].size
    for number in range(count):
        yield np.fromfile(path, np.float32, size, offset=start + 4 * size * number).reshape(1, *shape[1:])


def build(folder: str, counts: str) -> None:
    import onnxruntime as ort
    from models.resnet import write_images, write_resnet

    for model in MODELS:
        write_resnet(model, Path(folder, f"{model}.onnx"))
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(Path(folder, f"{model}.folded.onnx"))
        ort.InferenceSession(str(Path(folder, f"{model}.onnx")), options, providers=["CPUExecutionProvider"])
    write_images(max(map(int, counts.split(","))), Path(folder, "images.npy"))


def bare(model: str, images: str, count: int) -> None:
    import onnxruntime as ort

    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    for image in images_of(images, count):
        session.run(None, {"x": image})


def peer(method: str, model: str, images: str, count: int) -> None:
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.images = images_of(images, count)

        def get_next(self) -> dict[str, np.ndarray] | None:
            image = next(self.images, None)
            return None if image is None else {"x": image}

    logging.disable()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        quantize_static(
            model.replace(".onnx", ".folded.onnx"),
            Path(folder, "quantized.onnx"),
            Reader(),
            calibrate_method=CalibrationMethod[method],
        )


def ours(algorithm: str, model: str, images: str, count: int) -> None:
    from twinquant import calibrate
    from twinquant.data import DataOptions

    # It would say that the record is for the model with BatchNormalization folded.
    logging.disable()
    with tempfile.TemporaryDirectory() as folder:
        calibrate(
            model,
            images,
            Path(folder, "record.txt"),
            config={"activation_algorithm": algorithm},
            batch_num=count,
            options=DataOptions(batch_size=1),
        )


def measured(task: str, argument: str, model: str, images: str, count: str) -> dict[str, float]:
    # Modules are loaded before the clock starts.
    for module in ("onnxruntime.quantization", "twinquant.calibration_api", "twinquant_onnx.framework"):
        importlib.import_module(module)
    tasks = {"bare": bare, "quantize_static": peer, "twinquant": ours}
    start, wall = time.process_time(), time.perf_counter()
    tasks[task](*([argument] if argument else []), model, images, int(count))
    return {
        "seconds": time.process_time() - start,
        "wall": time.perf_counter() - wall,
        "peak": peak_memory(),
    }


def child(*arguments: Any) -> Any:
    command = [sys.executable, __file__, "--child", *map(str, arguments)]
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""}
    )
    return json.loads(done.stdout)


def best(rounds: int, cases: list[Case], *arguments: Any) -> dict[Case, dict[str, float]]:
    """Return each case's least times, in seconds, and greatest peak memory, in bytes. The cases take turns."""
    results: dict[Case, list[dict[str, float]]] = {case: [] for case in cases}
    for _ in range(rounds):
        for case, result in results.items():
            result.append(child("measure", *case, *arguments))
    return {
        case: {key: (max if key == "peak" else min)(r[key] for r in some) for key in some[0]}
        for case, some in results.items()
    }


def against(value: float, limit: float | None) -> str:
    return f"{value:.2f}" + ("" if limit is None else f" ({'ok' if value <= limit else 'MISSED'}: {limit:.2f})")


def run_model(name: str, folder: str, arguments: argparse.Namespace) -> None:
    model, images = Path(folder, f"{name}.onnx"), Path(folder, "images.npy")
    few, many = arguments.images, arguments.many_images
    peers = [("quantize_static", PEERS[name]) for name in arguments.algorithms if name in PEERS]
    cases = [("bare", ""), *peers, *(("twinquant", algorithm) for algorithm in arguments.algorithms)]
    results = best(arguments.rounds, cases, model, images, few)
    floor = results["bare", ""]
    histograms = [results[case]["peak"] for case in peers if case[1] != "MinMax"]
    seconds = f"{floor['seconds']:.2f} s ({floor['wall']:.2f} s)"
    print(f"\n{name}, {few} images; times in multiples of bare inference, {seconds}")
    heads = ("processor time", "of the peer", "elapsed", "peak MB", "of the peer", f"{many} : {few}")
    print(f"{'':<26} {heads[0]:>16} {heads[1]:>16} {heads[2]:>8} {heads[3]:>8} {heads[4]:>16} {heads[5]:>16}")
    for (task, argument), result in results.items():
        time_ratio = memory_ratio = growth = ""
        if task == "twinquant":
            if argument in PEERS:
                time_of_peer = results["quantize_static", PEERS[argument]]["seconds"]
                time_ratio = against(result["seconds"] / time_of_peer, OF_PEER_TIME)
            if histograms:
                memory_ratio = against(result["peak"] / min(histograms), OF_PEER_MEMORY)
            if many and argument in LONG:
                peak_of_many = child("measure", task, argument, model, images, many)["peak"]
                growth = against(peak_of_many / result["peak"], MORE_MEMORY)
        times = against(result["seconds"] / floor["seconds"], TIMES_BARE.get(argument) if task == "twinquant" else None)
        elapsed = result["wall"] / floor["wall"]
        columns = f"{times:>16} {time_ratio:>16} {elapsed:>8.2f} {result['peak'] / MB:>8.0f}"
        print(f"{f'{task} {argument}':<26} {columns} {memory_ratio:>16} {growth:>16}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=ALGORITHMS)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument(
        "--many-images", type=int, default=512, help="compare the peak memory with that of so many; 0: no"
    )
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        child("build", folder, f"{arguments.images},{arguments.many_images}")
        for name in arguments.models:
            run_model(name, folder, arguments)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        print(json.dumps({"build": build, "measure": measured}[sys.argv[2]](*sys.argv[3:])))
    else:
        main()
