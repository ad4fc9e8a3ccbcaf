"""What calibration asks of a float net: its inputs, and the values of its tensors."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from twinquant.registry import ModelInput, RunBatch, Tap
from twinquant.registry.float_model import Array
from twinquant_caffe.insert.heads import for_the_device
from twinquant_caffe.net import CaffeNet
from twinquant_caffe.run import open_net

__all__ = ["describe_inputs", "tap_net"]


def describe_inputs(net: CaffeNet) -> tuple[ModelInput, ...]:
    """Describe what has to be fed; what a data layer of a training net brings has to be fed, too.

    The first axis may have any length, whatever the prototxt says: it is the batch.
    """
    return tuple(_describe(name, shape) for name, shape in for_the_device(net).inputs)


def _describe(name: str, shape: tuple[int, ...]) -> ModelInput:
    return ModelInput(name, "float32", (None, *shape[1:]) if shape else None)


def tap_net(net: CaffeNet, taps: Sequence[Tap], threads: int | None) -> RunBatch:
    """Open the net in OpenCV, with nothing but what the taps look at.

    Raises:
        CapabilityError: OpenCV is missing.
        UnsupportedModelError: OpenCV cannot run the net.
    """
    places = [(tap, net.layer(tap.layer).reads[0]) for tap in taps]
    running = replace(for_the_device(net), files=net.files)
    run_net = open_net(running, [version for _, version in places], threads=threads)

    def run(feeds: Mapping[str, Array]) -> Iterator[tuple[Tap, Sequence[Array]]]:
        values = run_net(feeds)
        uses = Counter(version for _, version in places)
        for tap, version in places:
            uses[version] -= 1
            yield tap, [values[version] if uses[version] else values.pop(version)]

    return run
