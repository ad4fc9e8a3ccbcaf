"""Lowering a plan to ONNX operators: one module per slot."""

from __future__ import annotations

from collections.abc import Mapping

from twinquant.errors import UnsupportedModelError
from twinquant.outputs import Flavor
from twinquant.plan import QuantPlan, WeightQuant
from twinquant_onnx.graph import OnnxGraph
from twinquant_onnx.insert.activation import insert_activation_quant
from twinquant_onnx.insert.bias import bias_replacement, insert_bias_cast
from twinquant_onnx.insert.constants import Replacement, replace_constants
from twinquant_onnx.insert.output import insert_output_dequant
from twinquant_onnx.insert.rnn import insert_rnn
from twinquant_onnx.insert.twin import Twin
from twinquant_onnx.insert.weight import rounded_weights, weight_replacements
from twinquant_onnx.layers import LoadedModel
from twinquant_onnx.topology import MAIN_DOMAINS

__all__ = ["build_twin", "round_weights"]

_OLDEST_OPSET = 7
"""The first operator set whose Mul and Add broadcast by themselves."""


def build_twin(loaded: LoadedModel, plan: QuantPlan, flavor: Flavor) -> OnnxGraph:
    """Return one twin of a model. Weights are quantized when they are written.

    Raises:
        UnsupportedModelError: the model's operator set is too old.
        ModelContentError: a bias cannot be quantized.
    """
    twin = Twin(loaded, flavor, _opset(loaded.graph))
    outputs = loaded.topology.outputs
    sites = {site.name: site for site in loaded.sites.values()}
    quantized: dict[str, str] = {}
    first_reader: dict[str, int] = {}
    replacements: list[Replacement] = []
    for layer in plan:
        site = sites[layer.name]
        owner, reader = layer.activation.owner, site.activation.node
        first_reader[owner] = min(reader, first_reader.get(owner, reader))
        replacements += weight_replacements(twin, site, layer.weight, layer.recurrence)
        bias = bias_replacement(twin, site, layer)
        if bias is not None:
            replacements.append(bias)
    replace_constants(twin, loaded.topology, replacements)
    for layer in plan:
        site = sites[layer.name]
        if site.recurrence is not None:
            insert_rnn(twin, site, layer, outputs)
            continue
        insert_activation_quant(twin, site, layer, first_reader[layer.activation.owner], quantized)
        insert_bias_cast(twin, site, layer)
        insert_output_dequant(twin, site, layer, outputs)
    return twin.finish()


def round_weights(
    loaded: LoadedModel, weights: Mapping[str, tuple[WeightQuant | None, WeightQuant | None]]
) -> OnnxGraph:
    """Return the float model with the weights of some layers rounded to the grids of their integers.

    They are rounded when the model is written. Both twins of the result have the integers, and the names, that those of
    the given model have. Every node of the result has a name.

    Args:
        loaded: the model; it is not modified.
        weights: by layer, how its weight, and an RNN's recurrence weight, is quantized; None: it has none.

    Raises:
        UnsupportedModelError: the model's operator set is too old.
    """
    twin = Twin(loaded, Flavor.FAKE_QUANT, _opset(loaded.graph))
    sites = {site.name: site for site in loaded.sites.values()}
    wanted = [
        replacement
        for layer, (weight, recurrence) in weights.items()
        for replacement in rounded_weights(twin, sites[layer], weight, recurrence)
    ]
    replace_constants(twin, loaded.topology, wanted)
    return twin.finish()


def _opset(graph: OnnxGraph) -> int:
    version = next((int(o.version) for o in graph.model.opset_import if o.domain in MAIN_DOMAINS), 0)
    if version < _OLDEST_OPSET:
        raise UnsupportedModelError(
            f"the model uses ONNX operator set {version or '(none)'}; {_OLDEST_OPSET} or newer is needed. Convert it "
            "with onnx.version_converter.convert_version(model, 13), or export it again"
        )
    return version
