"""What is watched: which places of a model, for which layers, with which algorithm."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from twinquant.calibration.options import ObserverOptions
from twinquant.config import ActivationConfig, QuantConfig
from twinquant.plan import LayerInfo, LayerKind
from twinquant.plan.rules import KIND_RULES
from twinquant.registry.float_model import Tap

__all__ = ["Watch", "plan_watches"]

_CONVOLUTIONS = (LayerKind.CONV, LayerKind.CONV_TRANSPOSE)


@dataclass(frozen=True, slots=True)
class Watch:
    """Values that are watched together.

    Attributes:
        tap: where they are.
        layers: whose factors they give: layers that read one tensor with the same settings share a watch.
        options: how the factors are found.
        migration_strength: of the balance factors that the values are divided by; None: they are not balanced.
        channel_axis: where the values have their channels; negative: counted from the end, as values may lack the
            axis of the batch.
    """

    tap: Tap
    layers: tuple[str, ...]
    options: ObserverOptions
    migration_strength: float | None = None
    channel_axis: int = -1

    @property
    def label(self) -> str:
        """How messages call it."""
        layers = f"layer{'s' if len(self.layers) > 1 else ''} {', '.join(map(repr, self.layers))}"
        return f"{layers}, hidden state" if self.tap.hidden else layers


def plan_watches(layers: Sequence[LayerInfo], config: QuantConfig) -> tuple[Watch, ...]:
    """Decide what is watched.

    Args:
        layers: every node of the model, in graph order.
        config: which of them are quantized, and how.

    Returns:
        The watches in graph order; each quantized layer has one, an RNN has two.
    """
    watches: dict[object, Watch] = {}
    for layer in layers:
        settings = config.layers.get(layer.name)
        if layer.kind is None or layer.refusal is not None or settings is None or not settings.quant_enable:
            continue
        options = _observer_options(settings.activation)
        strength = settings.dmq_migration_strength
        key: object = (layer.activation, options) if strength is None else layer.name
        earlier = watches[key].layers if key in watches else ()
        tap = watches[key].tap if key in watches else Tap(layer.name)
        watches[key] = Watch(tap, (*earlier, layer.name), options, strength, _channel_axis(layer))
        if KIND_RULES[layer.kind].gates:
            watches[layer.name, "hidden"] = Watch(Tap(layer.name, hidden=True), (layer.name,), options)
    return tuple(watches.values())


def _channel_axis(layer: LayerInfo) -> int:
    """Return where a layer's activation has its channels: before the spatial axes, if it has any."""
    if layer.kind not in _CONVOLUTIONS:
        return -1
    # A weight has the spatial axes and two for channels.
    return 1 if layer.weight_shape is None else 1 - len(layer.weight_shape)


def _observer_options(activation: ActivationConfig) -> ObserverOptions:
    return ObserverOptions(
        algorithm=activation.algorithm,  # type: ignore[arg-type]  # the configuration has checked the name
        num_bits=activation.num_bits,
        asymmetric=activation.asymmetric,
        max_percentile=activation.max_percentile,
        min_percentile=activation.min_percentile,
        search_range=activation.search_range,
        search_step=activation.search_step,
        num_of_bins=activation.num_of_bins,
        percentile=activation.max_percentile,
    )
