"""How much faster record files are read than by protobuf's own text parser.

Run:  python benchmarks/records.py            (two minutes; --quick leaves out the largest file)

Each row reads one text with both and prints the ratio; the floats of both are compared bit by bit.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np
from google.protobuf import text_format

from twinquant.records import LayerRecord, RecordSet, format_records, parse_record_text
from twinquant.records.schema import record_file_message

# (layers, channels of each); a value of scale_w and one of offset_w a channel.
SHAPES = ((54, 490), (75, 1000), (750, 1000))

Result = TypeVar("Result")


def record_text(layers: int, channels: int) -> str:
    generator = np.random.default_rng(0)
    records = {
        f"layer{index}": LayerRecord(
            f"layer{index}",
            scale_d=0.028930493,
            offset_d=-12,
            scale_w=np.exp(generator.normal(-6, 1, channels)).astype(np.float32),
            offset_w=np.zeros(channels, np.int32),
        )
        for index in range(layers)
    }
    return format_records(RecordSet(records))


def timed(work: Callable[[], Result], rounds: int) -> tuple[float, Result]:
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        result = work()
        seconds.append(time.perf_counter() - start)
    return min(seconds), result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="leave out the largest file")
    shapes = SHAPES[:-1] if parser.parse_args().quick else SHAPES
    print(f"{'values':>10} {'MB':>6} {'protobuf s':>11} {'twinquant s':>12} {'ratio':>6}")
    for layers, channels in shapes:
        text = record_text(layers, channels)
        protobuf_seconds, message = timed(lambda text=text: text_format.Merge(text, record_file_message()()), 1)
        our_seconds, records = timed(lambda text=text: parse_record_text(text), 3)
        for record, expected in zip(records, message.record, strict=True):
            assert record.scale_w.tobytes() == np.array(expected.value.scale_w, np.float32).tobytes()
        print(
            f"{2 * layers * channels:>10,} {len(text) / 1e6:>6.1f} {protobuf_seconds:>11.2f} {our_seconds:>12.4f} "
            f"{protobuf_seconds / our_seconds:>5.0f}x"
        )


if __name__ == "__main__":
    main()
