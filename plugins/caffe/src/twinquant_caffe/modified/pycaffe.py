"""Running a net in Caffe itself, where the calibrating process has it."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from twinquant.registry import RunBatch, Tap
from twinquant.registry.float_model import Array
from twinquant_caffe.net import CaffeNet
from twinquant_caffe.write import write_net

__all__ = ["loaded_caffe", "tap_in_caffe"]


def loaded_caffe(net: CaffeNet) -> Any | None:
    """Return the module of Caffe; None: this process has none, or it does not know a layer of the net.

    It is there whenever Caffe runs a calibration layer. Asking it to build a layer that it does not know would end the
    process.
    """
    caffe = sys.modules.get("caffe")
    if not hasattr(caffe, "Net") or not hasattr(caffe, "layer_type_list"):
        return None
    known = set(caffe.layer_type_list())  # type: ignore[union-attr]  # it is a module that has it
    return caffe if all(layer.type in known for layer in net.layers) else None


def tap_in_caffe(caffe: Any, net: CaffeNet, weights: Path, taps: Sequence[Tap]) -> RunBatch:
    """Build the net in Caffe, and look at what the layers of the taps read, just before they run.

    Args:
        caffe: the module.
        net: what is run; its weights are read by Caffe.
        weights: the caffemodel that holds them.
        taps: in the order of the net.
    """
    with tempfile.TemporaryDirectory(prefix="twinquant-") as folder:
        bare = net.with_layers(replace(layer, blobs=()) for layer in net.layers)
        prototxt, _ = write_net(bare, Path(folder), "net.prototxt", "none.caffemodel")
        built = caffe.Net(str(prototxt), caffe.TEST)
    built.copy_from(str(weights))
    # Caffe adds layers, which split a blob of several readers. Net.forward(start, end) of some versions fails.
    names = list(built._layer_names)
    places = [(tap, names.index(tap.layer), net.layer(tap.layer).bottoms[0]) for tap in taps]

    def run(feeds: Mapping[str, Array]) -> Iterator[tuple[Tap, Sequence[Array]]]:
        for name, values in feeds.items():
            built.blobs[name].reshape(*values.shape)
            built.blobs[name].data[...] = values
        built.reshape()
        done = 0
        for tap, position, blob in places:
            # Later layers may work in place: a blob is looked at just before its reader runs.
            if done < position:
                built._forward(done, position - 1)
                done = position
            yield tap, [np.array(built.blobs[blob].data, np.float32)]

    return run
