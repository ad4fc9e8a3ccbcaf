"""Running an exported graph in ONNX Runtime on batches of any size, though the graph may know one size only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from twinquant.registry import RunBatch, Tap
from twinquant.registry.float_model import Array
from twinquant_onnx.framework import OnnxFramework
from twinquant_onnx.layers import LoadedModel
from twinquant_torch.graph import TorchGraph

__all__ = ["run_graph"]


def run_graph(graph: TorchGraph, taps: Sequence[Tap], threads: int | None = None) -> RunBatch:
    """Return what runs a batch and yields the values of the taps, in their order.

    A batch of another size than that of the example inputs is run on a graph that is exported for such. One session is
    open at a time: two would hold the weights twice.

    Raises:
        UnsupportedModelError: each run raises it where ONNX Runtime cannot run the graph, or no graph can be had for
            the size of the batch.
    """
    opened: list[tuple[LoadedModel, RunBatch]] = []

    def run_batch(feeds: Mapping[str, Array]) -> Iterator[tuple[Tap, Sequence[Array]]]:
        model = graph.model
        if graph.origin is not None and not graph.origin.resizer.original_fits(feeds):
            if not graph.origin.resizer.fits(feeds):
                opened.clear()
            model = graph.origin.resizer.model_for(feeds)
        if not opened or opened[0][0] is not model:
            opened.clear()
            edited = model if model is graph.model else graph.edits_of(model)
            opened.append((model, OnnxFramework().activations(edited, taps, threads=threads)))
        return opened[0][1](feeds)

    return run_batch
