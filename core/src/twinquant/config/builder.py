"""Making the configuration of a model from its layers and from what files and calls say."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from twinquant.config.definition_file import read_definition
from twinquant.config.json_file import read_finished, read_json
from twinquant.config.overrides import read_overrides
from twinquant.config.parameters import ACTIVATION, GENERAL, WEIGHT
from twinquant.config.quant_config import LayerConfig, QuantConfig
from twinquant.config.resolve import resolve_layer
from twinquant.config.rules import TYPE_NAMES, can_be_fused, is_of_type, takes_ada_round
from twinquant.config.settings import Definition, LayerSettings, Setting, suggestion
from twinquant.errors import ConfigError
from twinquant.plan import LayerInfo

__all__ = ["check_config", "create_config", "read_config"]

_logger = logging.getLogger(__name__)

_MOST_REASONS = 5
_MOST_NAMES = 10


def create_config(
    layers: Sequence[LayerInfo],
    *,
    skip_layers: Collection[str] | None = None,
    batch_num: int = 1,
    activation_offset: bool = True,
    definition: str | os.PathLike[str] | None = None,
    overrides: Mapping[str, Any] | None = None,
    tell_of_refused: bool = False,
) -> QuantConfig:
    """Make the configuration of a model.

    The most specific setting counts: the overrides, then the definition, then the other arguments; within the
    definition a layer's block, then its type's, then the common one. A setting that does not fit a layer is an error
    where it names the layer, and gives way where it is for the whole model.

    Args:
        layers: every node of the model, in graph order; those that can be quantized get a configuration.
        skip_layers: layers that are not quantized, besides those that the definition and the overrides skip.
        batch_num: how many batches calibration sees.
        activation_offset: whether activations are asymmetric.
        definition: a simplified configuration, a .cfg file.
        overrides: settings by name, such as `{"activation_algorithm": "hfmg", "asymmetric": False, "batch_num": 8,
            "layers": {"conv1": {"quant_enable": False}}}`; see `read_overrides` for the names.
        tell_of_refused: log a warning that names the layers which cannot be quantized and are not skipped.

    Raises:
        ConfigError: a setting or a layer is unknown, a value is not allowed, two settings contradict each other, or no
            layer is left to quantize.
    """
    arguments = {
        "batch_num": batch_num,
        "activation_offset": activation_offset,
        # A text is no list of names, although it could be made one; it is left for the check to refuse.
        "skip_layers": skip_layers if isinstance(skip_layers, str) else list(skip_layers or ()),
    }
    return _build(
        layers,
        below=read_overrides(arguments, "the arguments"),
        definition=read_definition(Path(definition)) if definition is not None else Definition(),
        above=read_overrides(overrides or {}),
        tell_of_refused=tell_of_refused,
    )


def read_config(
    path: str | os.PathLike[str], layers: Sequence[LayerInfo], *, batch_num: int = 1, tell_of_refused: bool = False
) -> QuantConfig:
    """Read a configuration in JSON, as `write_config` or the vendor's tool writes it.

    Layers that the file does not name are not quantized; settings that it leaves out have their defaults.

    Args:
        path: the file.
        layers: every node of the model, in graph order.
        batch_num: how many batches calibration sees, where the file does not say.
        tell_of_refused: as for `create_config`.

    Raises:
        ConfigError: the file is missing or no JSON, a setting or a layer is unknown, a value is not allowed or does not
            fit its layer, two settings contradict each other, or no layer is left to quantize.
    """
    return _build(
        layers,
        below=read_overrides({"batch_num": batch_num}, "the arguments"),
        definition=read_json(Path(path), [layer.name for layer in layers]),
        above=Definition(),
        unnamed_enabled=False,
        tell_of_refused=tell_of_refused,
    )


def check_config(config: QuantConfig, layers: Sequence[LayerInfo], *, tell_of_refused: bool = False) -> QuantConfig:
    """Return a finished configuration, checked against a model as one that is read from a file.

    Args:
        config: the configuration, maybe of another model.
        layers: every node of the model, in graph order.
        tell_of_refused: as for `create_config`.

    Raises:
        ConfigError: as for `read_config`.
    """
    return _build(
        layers,
        below=Definition(),
        definition=read_finished(config, [layer.name for layer in layers], "the QuantConfig"),
        above=Definition(),
        unnamed_enabled=False,
        tell_of_refused=tell_of_refused,
    )


def _build(
    layers: Sequence[LayerInfo],
    *,
    below: Definition,
    definition: Definition,
    above: Definition,
    unnamed_enabled: bool = True,
    tell_of_refused: bool = False,
) -> QuantConfig:
    model = _Model(layers)
    general = {**below.general, **definition.general, **above.general}
    if "skip_fusion_layers" in general:
        model.check_fusible(general["skip_fusion_layers"])
    sources = (below, definition, above)
    for source in sources:
        _refuse_skipped_blocks(source)
    skipped = model.skipped(
        [setting for source in sources for setting in source.skip_layers],
        [setting for source in sources for setting in source.skip_layer_types],
    )
    named = [model.by_name(source) for source in (definition, above)]
    for type_name in (block.name for block in definition.types):
        model.check_type(type_name)
    config = QuantConfig(**{name: setting.value for name, setting in general.items()})
    untrained: dict[str, list[str]] = {}
    for layer in model.quantizable.values():
        blocks = [named[0].get(layer.name), _of_type(layer, definition), definition.common]
        settings = _most_specific([block for block in blocks if block is not None])
        settings = _merge(_merge(settings, above.common), named[1].get(layer.name))
        enabled = unnamed_enabled and layer.name not in skipped
        if settings.quant_enable is not None:
            enabled = bool(settings.quant_enable.value)
        config.layers[layer.name] = resolve_layer(
            layer, settings, quant_enable=enabled, activation_offset=config.activation_offset
        )
        wants_training = enabled and WEIGHT.algorithm_of(settings.weight) == "ada_quantize"
        if wants_training and layer.untrainable and takes_ada_round(layer):
            untrained.setdefault(layer.untrainable, []).append(repr(layer.name))
    _check_something_is_left(config.layers, layers)
    if untrained:
        _logger.warning("layers that get arq_quantize instead of ada_quantize: %s", _told(untrained))
    if tell_of_refused:
        _tell_of_refused(layers, sources)
    return config


class _Model:
    """The layers of a model, looked up by settings that name them.

    Attributes:
        quantizable: the layers that can be quantized by name, in graph order.
    """

    def __init__(self, layers: Sequence[LayerInfo]) -> None:
        self._layers = {layer.name: layer for layer in layers}
        counts = Counter(layer.name for layer in layers)
        self._ambiguous = {name for name, count in counts.items() if count > 1}
        self.quantizable = {
            layer.name: layer
            for layer in layers
            if layer.kind is not None and layer.refusal is None and layer.name not in self._ambiguous
        }
        for name in GENERAL.keys() & self.quantizable.keys():
            del self.quantizable[name]
            _logger.warning("the layer %r is not quantized: a configuration has a setting of this name", name)
        wanted = {layer.name for layer in layers if layer.kind is not None}
        for name in sorted(self._ambiguous & wanted):
            _logger.warning("the layers %r are not quantized: several nodes have this name", name)

    def layer(self, name: Setting) -> LayerInfo:
        """Return the layer that a setting names, whether it can be quantized or not."""
        if name.value not in self._layers:
            raise name.error(f"the model has no layer {name.value!r}; {suggestion(name.value, list(self._layers))}")
        return self._layers[name.value]

    def check_quantizable(self, name: Setting) -> None:
        """Refuse a setting that names a layer which cannot be quantized."""
        layer = self.layer(name)
        if layer.name in self.quantizable:
            return
        if layer.name in self._ambiguous:
            raise name.error(f"several nodes have the name {layer.name!r}; give them different names")
        reason = layer.refusal or f"operators of type {layer.op_type} are not quantized"
        raise name.error(f"the {layer.op_type} layer {layer.name!r} cannot be quantized: {reason}")

    def check_type(self, name: Setting) -> None:
        """Refuse a setting that names an unknown type of layers."""
        known = [*TYPE_NAMES, *{layer.op_type for layer in self.quantizable.values()} - set(TYPE_NAMES)]
        if name.value not in known:
            raise name.error(f"{name.value!r} is no type of layers that are quantized; {suggestion(name.value, known)}")

    def check_fusible(self, names: Setting) -> None:
        """Refuse a list with a layer into which nothing is ever folded."""
        for name in names.value:
            layer = self.layer(Setting(name, names.origin))
            if not can_be_fused(layer):
                raise names.error(f"nothing is folded into {name!r}, which is a {layer.op_type}; remove it")

    def skipped(self, names: Collection[Setting], types: Collection[Setting]) -> set[str]:
        """Return the names of the layers that are skipped, by name or by type."""
        for name in names:
            self.check_quantizable(name)
        for type_name in types:
            self.check_type(type_name)
        by_type = {
            layer.name
            for layer in self.quantizable.values()
            if any(is_of_type(layer, type_name.value) for type_name in types)
        }
        return by_type | {name.value for name in names}

    def by_name(self, definition: Definition) -> dict[str, LayerSettings]:
        """Return the settings of single layers by name."""
        for block in definition.layers:
            switched_off = block.settings.quant_enable is not None and not block.settings.quant_enable.value
            if switched_off:
                self.layer(block.name)
            else:
                self.check_quantizable(block.name)
        return {block.name.value: block.settings for block in definition.layers}


def _refuse_skipped_blocks(source: Definition) -> None:
    """Refuse a block for a layer, or for a type, that the same configuration skips."""
    skipped = {setting.value: setting for setting in source.skip_layers}
    for block in source.layers:
        enable = block.settings.quant_enable
        switched_off = enable is not None and not enable.value
        if block.name.value in skipped and not switched_off:
            where = skipped[block.name.value].origin.path
            raise block.name.error(f"{block.name.value!r} is skipped by {where}; remove it from one of the two")
    types = {setting.value: setting for setting in source.skip_layer_types}
    for block in source.types:
        if block.name.value in types:
            where = types[block.name.value].origin.path
            raise block.name.error(
                f"the type {block.name.value!r} is skipped by {where}; remove it from one of the two"
            )


def _of_type(layer: LayerInfo, definition: Definition) -> LayerSettings | None:
    meant = [block for block in definition.types if is_of_type(layer, block.name.value)]
    if len(meant) > 1:
        first, second = meant[0].name, meant[1].name
        raise second.error(
            f"{first.value!r} ({first.origin.path}) and {second.value!r} both mean the {layer.op_type} layer "
            f"{layer.name!r}; remove one of the two"
        )
    return meant[0].settings if meant else None


def _most_specific(blocks: Sequence[LayerSettings]) -> LayerSettings:
    """Return the first block, which stands for itself but for `asymmetric`: that of the first block that has it counts.

    The order of precedence of `asymmetric` is layer, type, common block, activation_offset.
    """
    first = blocks[0]
    asymmetric = next((block.activation["asymmetric"] for block in blocks if "asymmetric" in block.activation), None)
    if asymmetric is None:
        return first
    return replace(first, activation={**first.activation, "asymmetric": asymmetric})


def _merge(below: LayerSettings, above: LayerSettings | None) -> LayerSettings:
    if above is None:
        return below
    return LayerSettings(
        ACTIVATION.merge(below.activation, above.activation),
        WEIGHT.merge(below.weight, above.weight),
        above.quant_enable or below.quant_enable,
        above.dmq_balancer_param or below.dmq_balancer_param,
    )


def _check_something_is_left(configured: Mapping[str, LayerConfig], layers: Sequence[LayerInfo]) -> None:
    if any(layer.quant_enable for layer in configured.values()):
        return
    if not configured:
        reasons = [f"{layer.name!r}: {layer.refusal}" for layer in layers if layer.kind is not None and layer.refusal]
        told = f": {'; '.join(reasons[:_MOST_REASONS])}" if reasons else ""
        more = f"; and {len(reasons) - _MOST_REASONS} more" if len(reasons) > _MOST_REASONS else ""
        raise ConfigError(f"the model has no layer that can be quantized{told}{more}", path="$")
    raise ConfigError(
        f"no layer is left to quantize: all of {', '.join(configured)} are switched off or skipped; enable one",
        path="$",
    )


def _told(by_reason: Mapping[str, Sequence[str]]) -> str:
    """Return names of layers and, behind them, what holds for them."""
    return "; ".join(
        ", ".join(names[:_MOST_NAMES])
        + (f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else "")
        + f": {reason}"
        for reason, names in by_reason.items()
    )


def _tell_of_refused(layers: Sequence[LayerInfo], sources: Sequence[Definition]) -> None:
    """Log which layers cannot be quantized and why, without those that a configuration skips."""
    switched_off = {
        block.name.value
        for source in sources
        for block in source.layers
        if block.settings.quant_enable is not None and not block.settings.quant_enable.value
    }
    types = [setting.value for source in sources for setting in source.skip_layer_types]
    by_reason: dict[str, list[str]] = {}
    for layer in layers:
        skipped = layer.name in switched_off or any(is_of_type(layer, type_name) for type_name in types)
        if layer.kind is not None and layer.refusal and not skipped:
            by_reason.setdefault(layer.refusal, []).append(repr(layer.name))
    if not by_reason:
        return
    count = sum(map(len, by_reason.values()))
    _logger.warning("layers that cannot be quantized and stay float: %d: %s", count, _told(by_reason))
