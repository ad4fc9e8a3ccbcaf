"""Modules and exported models that are refused as a whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from twinquant.errors import UnsupportedModelError
from twinquant_onnx.traversal import graphs_in

__all__ = ["refuse_active_training", "refuse_module", "refuse_training_program"]

_QUANTIZED = ("torch.ao.nn.quantized", "torch.ao.nn.intrinsic.quantized", "torch.ao.nn.sparse.quantized")
"""Where torch has the modules that its own quantization makes."""

_TRAINING = (
    "{what} is in training mode: BatchNormalization would use the statistics of each batch, and Dropout would be "
    "active; call .eval() on the model, and export or pass it then"
)


def refuse_module(module: Any) -> None:
    """Refuse a module that cannot be exported, or that the exporters would export wrong.

    Raises:
        UnsupportedModelError: a module in it is a TorchScript module, quantized already, in training mode, not
            initialized, or uses an option that ONNX has not.
    """
    for path, inner in module.named_modules():
        what = f"the module {path!r} of the model" if path else "the model"
        if isinstance(inner, torch.jit.ScriptModule):
            raise UnsupportedModelError(
                f"{what} is a TorchScript module, whose layers cannot be looked into; pass the torch.nn.Module that "
                "was scripted or traced"
            )
        if type(inner).__module__.startswith(_QUANTIZED):
            raise UnsupportedModelError(
                f"{what} ({type(inner).__name__}) is quantized already, by torch itself; pass the float model"
            )
    for path, inner in module.named_modules():
        what = f"the module {path!r} of the model"
        if inner.training:
            raise UnsupportedModelError(_TRAINING.format(what=what if path else f"the model {type(module).__name__}"))
        if any(torch.nn.parameter.is_lazy(tensor) for tensor in (*_own(inner._parameters), *_own(inner._buffers))):
            raise UnsupportedModelError(
                f"{what} ({type(inner).__name__}) has parameters without a shape: lazy modules get them in their first "
                "call; run the model once on a batch, then pass it"
            )
        if getattr(inner, "divisor_override", None) is not None and "AvgPool" in type(inner).__name__:
            raise UnsupportedModelError(
                f"{what} ({type(inner).__name__}) has divisor_override={inner.divisor_override}, which no exporter "
                "keeps, as ONNX has no such option; leave it out, and multiply the output by a constant instead"
            )
        if isinstance(inner, torch.nn.LSTM) and inner.proj_size:
            raise UnsupportedModelError(
                f"{what} (LSTM) has proj_size={inner.proj_size}, which no exporter keeps, as ONNX has no such option; "
                "use an LSTM without it, and a Linear behind it"
            )


def refuse_training_program(program: Any) -> None:
    """Refuse an exported program whose normalizations work as in training.

    Raises:
        UnsupportedModelError: there is such an operator.
    """
    for node in program.graph.nodes:
        if node.op != "call_function" or "batch_norm" not in str(node.target):
            continue
        schema = getattr(node.target, "_schema", None)
        names = [argument.name for argument in schema.arguments] if schema is not None else []
        given = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
        # Without running statistics, those of each batch are what the module uses in any case.
        if given.get("training") is True and given.get("running_mean") is not None:
            raise UnsupportedModelError(_TRAINING.format(what="the exported program"))


def _own(tensors: dict[str, Any]) -> list[Any]:
    return [tensor for tensor in tensors.values() if tensor is not None]


def refuse_active_training(model: onnx.ModelProto, what: str) -> None:
    """Refuse a model whose normalizations or dropouts work as in training.

    Args:
        model: an exported model.
        what: how messages call what it was exported from.

    Raises:
        UnsupportedModelError: there is such a node.
    """
    constants: dict[str, onnx.TensorProto] = {}
    for graph in graphs_in(model.graph):
        constants |= {tensor.name: tensor for tensor in graph.initializer}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute[0].name == "value":
                constants[node.output[0]] = node.attribute[0].t
    for graph in graphs_in(model.graph):
        for node in graph.node:
            modes = {attribute.name: attribute.i for attribute in node.attribute}
            if node.op_type == "BatchNormalization" and modes.get("training_mode"):
                raise UnsupportedModelError(_TRAINING.format(what=what))
            if node.op_type == "Dropout" and _is_active(node, constants):
                raise UnsupportedModelError(
                    f"{what} drops values at random, as in training: call .eval() on the model before it is exported, "
                    "and give torch.nn.functional.dropout its argument training=self.training"
                )


def _is_active(node: onnx.NodeProto, constants: dict[str, onnx.TensorProto]) -> bool:
    """Tell whether a Dropout drops anything; one whose mode is computed is taken for one that does not."""
    ratio, mode = (constants.get(node.input[slot]) if len(node.input) > slot else None for slot in (1, 2))
    if mode is None or not np.any(numpy_helper.to_array(mode)):
        return False
    return ratio is None or bool(np.any(numpy_helper.to_array(ratio)))
