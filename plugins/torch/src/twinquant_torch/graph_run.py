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

    A batch of another size than that of the example inputs is run on a graph that is exported for such.

    Raises:
        UnsupportedModelError: ONNX Runtime cannot run the graph. Each run raises it, too, where no graph can be had for
            a batch's size.
    """
    run = OnnxFramework().activations(graph.model, taps, threads=threads)
    sizes = {value.name: value.shape or () for value in OnnxFramework().model_inputs(graph.model)}
    resized: list[tuple[LoadedModel, RunBatch]] = []

    def run_batch(feeds: Mapping[str, Array]) -> Iterator[tuple[Tap, Sequence[Array]]]:
        if graph.origin is None or _fits(feeds, sizes):
            return run(feeds)
        model = graph.origin.resizer.model_for(feeds)
        if not resized or resized[0][0] is not model:
            edited = graph.edits_of(model)
            resized[:] = [(model, OnnxFramework().activations(edited, taps, threads=threads))]
        return resized[0][1](feeds)

    return run_batch


def _fits(feeds: Mapping[str, Array], sizes: Mapping[str, tuple[int | str | None, ...]]) -> bool:
    return all(
        not isinstance(length, int) or length == given
        for name, lengths in sizes.items()
        for length, given in zip(lengths, feeds[name].shape, strict=False)
    )
