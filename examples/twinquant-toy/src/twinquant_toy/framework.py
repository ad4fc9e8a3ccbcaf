"""A framework whose model is a JSON file: a chain of dense layers, `y = weight @ x + bias`."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from twinquant.errors import ModelContentError, ModelFileError
from twinquant.numerics import (
    integer_range,
    pack_dequant_parameter,
    quantize_bias,
    quantize_weight,
    reciprocal_scale,
    scale_for_shape,
)
from twinquant.outputs.artifact import Flavor
from twinquant.plan import ActivationQuant, LayerInfo, LayerKind, LayerPlan, QuantPlan
from twinquant.registry import Framework, Match

SUFFIX = ".toy.json"


class ToyFramework(Framework):
    """Reads and writes `*.toy.json`: `{"layers": [{"name": "fc1", "weight": [[...]], "bias": [...]}]}`."""

    name = "toy"

    def recognize(self, source: Any) -> Match:
        """Claim files by their name."""
        return Match.NAME if isinstance(source, (str, os.PathLike)) and str(source).endswith(SUFFIX) else Match.NO

    def load(self, source: Any) -> list[dict[str, Any]]:
        """Read the layers; weights become float64 `(out, in)`, biases float64 `(out,)`."""
        try:
            layers = json.loads(Path(source).read_text("utf-8"))["layers"]
            biases = [np.array(layer["bias"], float).reshape(-1) for layer in layers]
            weights = [np.array(layer["weight"], float) for layer in layers]
            pairs = zip(layers, weights, biases, strict=True)
            return [{"name": layer["name"], "weight": w.reshape(b.size, -1), "bias": b} for layer, w, b in pairs]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ModelFileError(f"{os.fspath(source)!r} is no readable toy model: {error!r}") from error

    def layers(self, graph: list[dict[str, Any]]) -> Sequence[LayerInfo]:
        """Describe every layer; each reads its own tensor, so none shares a quantization with another."""
        return [
            LayerInfo(
                layer["name"],
                op_type="Dense",
                kind=LayerKind.GEMM,
                activation=f"input {position}",
                in_channels=layer["weight"].shape[1],
                has_bias=True,
            )
            for position, layer in enumerate(graph)
        ]

    def insert(self, graph: list[dict[str, Any]], plan: QuantPlan, flavor: Flavor) -> list[dict[str, Any]]:
        """Replace the planned layers and share the others."""
        planned = {layer.name: layer for layer in plan}
        return [_lower(layer, planned[layer["name"]], flavor) if layer["name"] in planned else layer for layer in graph]

    def write(self, graph: list[dict[str, Any]], folder: Path, prefix: str, flavor: Flavor) -> Sequence[Path]:
        """Write one JSON file."""
        path = folder / f"{prefix}{'_' if prefix else ''}{flavor.value}_model{SUFFIX}"
        path.write_text(json.dumps({"layers": graph}, default=np.ndarray.tolist), "utf-8")
        return [path]


def _lower(layer: dict[str, Any], plan: LayerPlan, flavor: Flavor) -> dict[str, Any]:
    """Quantize one layer: both twins hold the same integers, the fake-quant one as floats, JSON at any bit width."""
    assert plan.weight is not None and plan.bias is not None  # every toy layer has both
    try:
        scale = scale_for_shape(plan.weight.scale, ndim=2, axis=0)
        weight: Any = quantize_weight(layer["weight"], scale, plan.weight.num_bits)
        bias: Any = quantize_bias(layer["bias"], plan.bias.scale)
    except ValueError as error:
        raise ModelContentError(f"layer {layer['name']!r} cannot be quantized: {error}") from error
    quantized = {"name": layer["name"], "quant": _quant(plan.activation)}
    if flavor is Flavor.DEPLOY:
        return {**quantized, "weight": weight, "bias": bias, "dequant": pack_dequant_parameter(plan.output.scale)}
    return {**quantized, "weight": weight.astype(float), "bias": bias.astype(float), "multiply_by": plan.output.scale}


def _quant(plan: ActivationQuant) -> dict[str, Any]:
    """Describe what happens to the input of a layer."""
    low, high = integer_range(plan.num_bits)
    scale = float(reciprocal_scale(plan.scale))
    return {"divide_by": plan.balance, "scale": scale, "offset": plan.offset, "low": low, "high": high}
