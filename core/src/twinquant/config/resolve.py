"""From what a configuration says to the settings of one layer: defaults filled in, misfits adapted or refused."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypeVar

from twinquant.config.parameters import ACTIVATION, ACTIVATION_DEFAULTS, MOST_CANDIDATES, WEIGHT, candidate_count
from twinquant.config.quant_config import ActivationConfig, LayerConfig, WeightConfig
from twinquant.config.rules import (
    layer_kind,
    must_be_symmetric,
    takes_ada_round,
    takes_balance_factors,
    takes_channel_wise,
    takes_general_activation_bits,
    takes_general_weight_bits,
)
from twinquant.config.settings import LayerSettings, Scope, Setting
from twinquant.plan import LayerInfo
from twinquant.plan.rules import KIND_RULES

__all__ = ["resolve_layer"]

_logger = logging.getLogger(__name__)

_Value = TypeVar("_Value")
_ATTRIBUTES = {"act_algo": "algorithm", "wts_algo": "algorithm"}


def resolve_layer(
    layer: LayerInfo, settings: LayerSettings, *, quant_enable: bool, activation_offset: bool
) -> LayerConfig:
    """Settle what holds for one layer.

    A setting that does not fit the layer is an error where it names the layer; one for the whole model, and in some
    cases one for a type, gives way, which the module's logger tells.

    Args:
        layer: the layer; it can be quantized.
        settings: what is said about it.
        quant_enable: whether it is quantized.
        activation_offset: whether its activation is asymmetric if the settings do not say.

    Raises:
        ConfigError: a setting does not fit the layer, or two contradict each other.
    """
    return LayerConfig(
        layer.name,
        quant_enable,
        _activation(layer, settings, activation_offset),
        _weight(layer, settings),
        _migration_strength(layer, settings.dmq_balancer_param),
    )


def _activation(layer: LayerInfo, settings: LayerSettings, activation_offset: bool) -> ActivationConfig:
    given = settings.activation
    algorithm = ACTIVATION.algorithm_of(given) or ACTIVATION.default
    values: dict[str, Any] = ACTIVATION_DEFAULTS.get(algorithm, {}) | _values(given)
    values["algorithm"] = algorithm
    values["num_bits"] = _activation_bits(layer, given.get("num_bits"))
    values["asymmetric"] = _asymmetric(layer, given.get("asymmetric"), activation_offset)
    config = ActivationConfig(**values)
    _check_search(config, given)
    if algorithm == "percentile" and config.max_percentile != config.min_percentile:
        setting = given.get("max_percentile") or given["min_percentile"]
        raise setting.error(
            f"max_percentile {config.max_percentile} and min_percentile {config.min_percentile} differ; the algorithm "
            "'percentile' takes one share for both ends: give both the same value"
        )
    return config


def _check_search(config: ActivationConfig, given: Mapping[str, Setting]) -> None:
    count = candidate_count(config.search_range, config.search_step)
    if 0 < count <= MOST_CANDIDATES:
        return
    low, high = config.search_range
    setting = given.get("search_step") or given["search_range"]
    if not count:
        raise setting.error(f"search_step {config.search_step} is larger than the search_range [{low}, {high}] is wide")
    raise setting.error(
        f"search_step {config.search_step} divides the search_range [{low}, {high}] into more than {MOST_CANDIDATES:,} "
        f"steps, too many to search: give a step of {(high - low) / MOST_CANDIDATES:.3g} or more"
    )


def _weight(layer: LayerInfo, settings: LayerSettings) -> WeightConfig:
    given = dict(settings.weight)
    algorithm = WEIGHT.algorithm_of(given) or WEIGHT.default
    if algorithm == "ada_quantize" and (layer.untrainable or not takes_ada_round(layer)):
        setting = given.get("wts_algo") or next(given[name] for name in WEIGHT.own[algorithm] if name in given)
        why, widest = "its rounding cannot be trained", Scope.TYPE
        if takes_ada_round(layer) and layer.untrainable:
            why, widest = layer.untrainable, Scope.LAYER
        algorithm = _give_way(layer, setting, "arq_quantize", why, widest_error=widest)
        given = {name: given[name] for name in WEIGHT.used_by(algorithm) if name in given}
    values = _values(given)
    values["algorithm"] = algorithm
    values["num_bits"] = _weight_bits(layer, given.get("num_bits"))
    values["channel_wise"] = _channel_wise(layer, given.get("channel_wise"))
    return WeightConfig(**values)


def _values(given: Any) -> dict[str, Any]:
    return {_ATTRIBUTES.get(name, name): setting.value for name, setting in given.items()}


def _give_way(
    layer: LayerInfo, setting: Setting, fallback: _Value, why: str, *, widest_error: Scope = Scope.TYPE
) -> _Value:
    """Return what holds instead of a setting that does not fit.

    Raises:
        ConfigError: the setting's scope is `widest_error` or narrower.
    """
    problem = f"{setting.value!r} does not fit the {layer.op_type} layer {layer.name!r}: {why}"
    if setting.origin.scope >= widest_error:
        raise setting.error(f"{problem}; must be {fallback!r}")
    _logger.info("%s, %s: %s; %r is used", setting.origin.source, setting.origin.path, problem, fallback)
    return fallback


def _activation_bits(layer: LayerInfo, setting: Setting | None) -> int:
    if setting is None:
        return 8
    allowed = KIND_RULES[layer_kind(layer)].activation_bits
    named = setting.origin.scope is Scope.LAYER
    if setting.value in allowed if named else takes_general_activation_bits(layer, setting.value):
        return int(setting.value)
    return _give_way(layer, setting, 8, "its activation is not quantized to so many bits", widest_error=Scope.LAYER)


def _asymmetric(layer: LayerInfo, setting: Setting | None, activation_offset: bool) -> bool:
    asymmetric = activation_offset if setting is None else bool(setting.value)
    if not asymmetric or not must_be_symmetric(layer):
        return asymmetric
    if setting is None:
        return False
    why = "a three-dimensional convolution takes no offset"
    return _give_way(layer, setting, False, why, widest_error=Scope.LAYER)


def _weight_bits(layer: LayerInfo, setting: Setting | None) -> int:
    if setting is None:
        return 8
    weighted = KIND_RULES[layer_kind(layer)].weighted
    named = setting.origin.scope is Scope.LAYER
    if not (weighted or setting.value == 8 if named else takes_general_weight_bits(layer, setting.value)):
        why = "it has no weight" if not weighted else "its weight is not quantized to so many bits"
        return _give_way(layer, setting, 8, why, widest_error=Scope.LAYER)
    odd = next((length for length in layer.packed_lengths if length % 2), None)
    if setting.value == 4 and odd is not None:
        # The reference implementation writes such a layer's record with INT8, whoever asked for INT4.
        _logger.warning(
            "%s, %s: 4-bit weights share a byte in pairs, but the layer %r has an odd number of them (%d); 8 is used",
            setting.origin.source,
            setting.origin.path,
            layer.name,
            odd,
        )
        return 8
    return int(setting.value)


def _channel_wise(layer: LayerInfo, setting: Setting | None) -> bool:
    possible = takes_channel_wise(layer)
    if setting is None:
        return possible
    if setting.value and not possible:
        return _give_way(layer, setting, False, "its weight has one scale")
    return bool(setting.value)


def _migration_strength(layer: LayerInfo, setting: Setting | None) -> float | None:
    if setting is None:
        return None
    if not takes_balance_factors(layer):
        return _give_way(layer, setting, None, "its activation cannot be balanced")
    return float(setting.value)
