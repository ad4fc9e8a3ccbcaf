"""How long a torch model takes from a configuration to its twins, compared with exporting it: torch.onnx.export alone.

Run:  python benchmarks/torch_flow.py          (ten minutes; --only resnet18 bert for less)

The flow is create_quant_config, quantize_model, one batch and save_model. The yardstick exports the same module to the
same disk. Both run in processes of their own, whose clocks start when torch and the module are there; the weights are
random and seeded. The vendor's own figures for its tool, on another machine, are there for context.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

# The parent process imports no torch: a child's peak memory includes what its parent had at the fork.
if TYPE_CHECKING:
    import torch
    from torch import nn

LIMIT = 3.0


@dataclass
class Case:
    """A model, its example input, and what the vendor's tool takes for it in seconds."""

    build: Callable[[], tuple[nn.Module, torch.Tensor]]
    vendor_flow: float
    vendor_save: float


def resnet(blocks: tuple[int, ...], expansion: int) -> Callable[[], tuple[nn.Module, torch.Tensor]]:
    def build() -> tuple[nn.Module, torch.Tensor]:
        import torch
        from torch import nn

        def conv(channels: int, filters: int, kernel: int, stride: int = 1) -> list[nn.Module]:
            layer = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, bias=False)
            return [layer, nn.BatchNorm2d(filters)]

        class Block(nn.Module):
            def __init__(self, channels: int, width: int, stride: int) -> None:
                super().__init__()
                outputs = width * expansion
                if expansion == 1:
                    layers = [*conv(channels, width, 3, stride), nn.ReLU(), *conv(width, width, 3)]
                else:
                    layers = [*conv(channels, width, 1), nn.ReLU(), *conv(width, width, 3, stride), nn.ReLU()]
                    layers += conv(width, outputs, 1)
                self.layers = nn.Sequential(*layers)
                same = stride == 1 and channels == outputs
                self.shortcut = nn.Identity() if same else nn.Sequential(*conv(channels, outputs, 1, stride))

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.relu(self.layers(x) + self.shortcut(x))

        torch.manual_seed(0)
        layers: list[nn.Module] = [*conv(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
        channels = 64
        for stage, count in enumerate(blocks):
            for number in range(count):
                layers.append(Block(channels, 64 << stage, 2 if stage and not number else 1))
                channels = (64 << stage) * expansion
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000)]
        return nn.Sequential(*layers).eval(), torch.randn(1, 3, 224, 224)

    return build


def bert() -> tuple[nn.Module, torch.Tensor]:
    import torch
    from torch import nn

    width, heads, length = 768, 12, 128

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
            self.output = nn.Linear(width, width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            q, k, v = (
                layer(x).unflatten(-1, (heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
            )
            y = torch.softmax(q @ k.transpose(-1, -2) / (width // heads) ** 0.5, -1) @ v
            mixed: torch.Tensor = self.output(y.transpose(1, 2).flatten(2))
            return mixed

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.norm1 = Attention(), nn.LayerNorm(width)
            self.inner, self.outer, self.norm2 = nn.Linear(width, 3072), nn.Linear(3072, width), nn.LayerNorm(width)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.norm1(x + self.attention(x))
            y: torch.Tensor = self.norm2(x + self.outer(nn.functional.gelu(self.inner(x))))
            return y

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words, self.places = nn.Embedding(30522, width), nn.Parameter(torch.randn(length, width))
            self.norm, self.layers = nn.LayerNorm(width), nn.Sequential(*(Layer() for _ in range(12)))
            self.pooler = nn.Linear(width, width)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            x = self.layers(self.norm(self.words(tokens) + self.places))
            return torch.tanh(self.pooler(x[:, 0]))

    torch.manual_seed(0)
    return Encoder().eval(), torch.randint(0, 30522, (1, length))


CASES = {
    "resnet18": Case(resnet((2, 2, 2, 2), 1), 5.2, 2.5),
    "resnet50": Case(resnet((3, 4, 6, 3), 4), 21, 6),
    "resnet152": Case(resnet((3, 8, 36, 3), 4), 170, 15),
    "bert": Case(bert, 32, 18),
}
"""By the name that --only takes."""


def export(name: str, folder: Path) -> dict[str, float]:
    import torch

    model, x = CASES[name].build()
    start = time.perf_counter()
    with torch.no_grad():
        torch.onnx.export(model, (x,), folder / "plain.onnx", dynamo=True, verbose=False)
    return {"seconds": time.perf_counter() - start, "peak": peak_memory()}


def flow(name: str, folder: Path) -> dict[str, float]:
    import torch

    import twinquant_torch.amct as amct

    model, x = CASES[name].build()
    config, modified, record = folder / "config.json", folder / "modified.onnx", folder / "record.txt"
    clock = [time.perf_counter()]
    amct.create_quant_config(str(config), model, x)
    clock.append(time.perf_counter())
    calibrated = amct.quantize_model(str(config), str(modified), str(record), model, x)
    clock.append(time.perf_counter())
    with torch.no_grad():
        calibrated(x)
    clock.append(time.perf_counter())
    amct.save_model(str(modified), str(record), str(folder / "results" / name))
    clock.append(time.perf_counter())
    names = ("config", "quantize", "batch", "save")
    steps = dict(zip(names, (after - before for before, after in pairwise(clock)), strict=True))
    return {**steps, "seconds": clock[-1] - clock[0], "peak": peak_memory()}


def peak_memory() -> int:
    """Return the most memory that this process has held, in bytes."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage's peak starts with that of the process this one was started from
        peak = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(peak.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def child(task: str, name: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--child", task, name, folder]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def quickest(name: str, rounds: int) -> list[dict[str, Any]]:
    """Return the best run of the yardstick and of the flow, which take turns."""
    runs = [(child("export", name), child("flow", name)) for _ in range(rounds)]
    return [min(results, key=lambda result: result["seconds"]) for results in zip(*runs, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=tuple(CASES))
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    print(
        f"{'model':<10} {'export s':>8} {'flow s':>7} {'ratio':>6} {'limit':>6}   "
        f"{'config':>6} {'quantize':>8} {'batch':>6} {'save':>6}   {'peak MB':>7} {'ratio':>5}   {'vendor s':>9} + save"
    )
    for name in arguments.only:
        case = CASES[name]
        plain, ours = quickest(name, arguments.rounds)
        ratio = ours["seconds"] / plain["seconds"]
        print(
            f"{name:<10} {plain['seconds']:>8.1f} {ours['seconds']:>7.1f} {ratio:>6.2f} "
            f"{'ok' if ratio <= LIMIT else 'MISSED':>6}   {ours['config']:>6.1f} {ours['quantize']:>8.1f} "
            f"{ours['batch']:>6.1f} {ours['save']:>6.1f}   {ours['peak'] / 1e6:>7.0f} "
            f"{ours['peak'] / plain['peak']:>5.2f}   {case.vendor_flow:>9g} + {case.vendor_save:g}",
            flush=True,
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        warnings.simplefilter("ignore")
        tasks = {"export": export, "flow": flow}
        print(json.dumps(tasks[sys.argv[2]](sys.argv[3], Path(sys.argv[4]))))
    else:
        main()
