"""Running an exported graph in ONNX Runtime on batches of any size, though the graph may know one size only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from twinquant.registry import RunBatch, Tap
from twinquant.registry.float_model import Array
from twinquant_onnx.framework import OnnxFramework
from twinquant_onnx.layers import LoadedModel

__all__ = ["run_graph"]


def run_graph(model: LoadedModel, taps: Sequence[Tap], threads: int | None = None) -> RunBatch:
    """Return what runs a batch and yields the values of the taps, in their order.

    A batch of several times the size that the graph was exported with is run in pieces; a tap has an array for each.

    Raises:
        UnsupportedModelError: ONNX Runtime cannot run the graph.
    """
    framework = OnnxFramework()
    run = framework.activations(model, taps, threads=threads)
    sizes = {value.name: value.shape[0] for value in framework.model_inputs(model) if value.shape}

    def run_pieces(feeds: Mapping[str, Array]) -> Iterator[tuple[Tap, Sequence[Array]]]:
        pieces = list(_pieces(feeds, sizes))
        if len(pieces) == 1:
            yield from run(feeds)
            return
        values: dict[Tap, list[Array]] = {tap: [] for tap in taps}
        for piece in pieces:
            for tap, arrays in run(piece):
                values[tap] += arrays
        for tap in taps:
            yield tap, values.pop(tap)

    return run_pieces


def _pieces(feeds: Mapping[str, Array], sizes: Mapping[str, int | str | None]) -> Iterator[Mapping[str, Array]]:
    """Cut a batch, or leave it whole where it fits, or where it cannot be cut into equal pieces."""
    counts = {
        feeds[name].shape[0] / size if isinstance(size, int) and size and feeds[name].ndim else 1
        for name, size in sizes.items()
    }
    (count,) = counts if len(counts) == 1 else (1,)
    if count <= 1 or count != int(count):
        yield feeds
        return
    for number in range(int(count)):
        cut = {}
        for name, array in feeds.items():
            rows = array.shape[0] // int(count)
            cut[name] = array[number * rows : (number + 1) * rows]
        yield cut
