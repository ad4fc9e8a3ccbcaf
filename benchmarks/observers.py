"""How fast activations are observed, and how many passes over the data IFMR needs.

Run:  python benchmarks/observers.py          (one minute)

The first table prints, for each algorithm and pass, how many times as long as `min` and `max` of the same arrays it
takes; the batches have the sizes of the activations of a residual network at batch size 1. The second table counts how
often IFMR is settled by its first pass, and how many of the 61 candidates the exact pass has to compare otherwise.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt

from twinquant.calibration import Observer, ObserverOptions, make_observer
from twinquant.calibration.options import Algorithm

Batches = Sequence[npt.NDArray[np.float32]]

ALGORITHMS: tuple[Algorithm, ...] = ("minmax", "percentile", "entropy", "mse", "hfmg", "ifmr")
# Values of one activation, and how many batches of it are observed.
SIZES = ((802_816, 8), (100_352, 32), (25_088, 64))
ROUNDS = 3
TRIALS = 10


def relu_batches(size: int, count: int) -> Batches:
    generator = np.random.default_rng(0)
    return [np.maximum(generator.standard_normal(size, dtype=np.float32), 0) for _ in range(count)]


def seconds_of(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read(batches: Batches) -> None:
    for batch in batches:
        batch.min()
        batch.max()


def observe(observer: Observer, batches: Batches) -> None:
    for batch in batches:
        observer.observe(batch)


def passes_of(options: ObserverOptions, batches: Batches) -> list[tuple[float, float]]:
    """Seconds of each pass, and of what follows it."""
    observer, times, more = make_observer(options), [], True
    while more:
        observing = seconds_of(partial(observe, observer, batches))
        start = time.perf_counter()
        more = observer.end_pass()
        times.append((observing, time.perf_counter() - start))
    return times


def print_speeds() -> None:
    kinds: list[tuple[Algorithm, int]] = [*((algorithm, 8) for algorithm in ALGORITHMS), ("ifmr", 16)]
    print(f"{'values':>8} {'algorithm':<16} {'pass':>4} {'GB/s':>6} {'times min+max':>14} {'end of pass ms':>15}")
    for size, count in SIZES:
        batches = relu_batches(size, count)
        floor = min(seconds_of(partial(read, batches)) for _ in range(ROUNDS))
        for algorithm, bits in kinds:
            part = batches if bits == 8 else batches[: max(1, count // 8)]
            rounds = [passes_of(ObserverOptions(algorithm, bits), part) for _ in range(ROUNDS)]
            for number, times in enumerate(zip(*rounds, strict=True), 1):
                observing, ending = min(times)
                gigabytes = 4e-9 * size * len(part)
                print(
                    f"{size:>8} {f'{algorithm}, {bits} bits':<16} {number:>4} {gigabytes / observing:>6.2f} "
                    f"{observing / (floor * len(part) / count):>14.1f} {1000 * ending:>15.1f}"
                )


def print_contenders() -> None:
    generator = np.random.default_rng(1)
    shapes: dict[str, Callable[[int], npt.NDArray[np.float64]]] = {
        "normal": generator.standard_normal,
        "ReLU": lambda size: np.maximum(generator.standard_normal(size), 0.0),
        "GELU": lambda size: (lambda z: z / (1.0 + np.exp(-1.702 * z)))(generator.standard_normal(size)),
        "Laplace": lambda size: generator.laplace(size=size),
        "Student t, 5": lambda size: generator.standard_t(5, size),
        "pixels / 255": lambda size: generator.integers(0, 256, size) / 255.0,
    }
    print(f"\n{'bits':>4} {'distribution':<14} times settled by the first pass; candidates left otherwise")
    for bits in (4, 8, 16):
        for name, sample in shapes.items():
            left: Counter[int] = Counter()
            for _ in range(TRIALS):
                observer = make_observer(ObserverOptions(num_bits=bits))
                observer.observe(sample(int(10 ** generator.uniform(4.5, 6.0))))
                if observer.end_pass():
                    candidates = observer.state()["stage.candidates"]
                    left[len(candidates)] += 1
            others = ", ".join(f"{count} x {candidates}" for candidates, count in sorted(left.items()))
            print(f"{bits:>4} {name:<14} {TRIALS - left.total()} of {TRIALS}; {others or '-'}")


def main() -> None:
    print_speeds()
    print_contenders()


if __name__ == "__main__":
    main()
