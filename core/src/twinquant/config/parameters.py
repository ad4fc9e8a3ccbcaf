"""Every setting by its name in JSON, in the order of files: what it may be, and which algorithm uses it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import ROUND_CEILING, Decimal
from numbers import Integral, Real
from typing import Any

from twinquant.config.settings import Origin, Setting, suggestion

__all__ = [
    "ACTIVATION",
    "ACTIVATION_DEFAULTS",
    "BIN_COUNTS",
    "DMQ_BALANCER_PARAM",
    "GENERAL",
    "MOST_CANDIDATES",
    "QUANT_ENABLE",
    "WEIGHT",
    "Group",
    "Parameter",
    "candidate_count",
    "read_group",
    "read_value",
]


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a setting may be.

    Attributes:
        rule: the allowed values, as the end of "must be ...".
        accepts: tells whether a value is allowed.
        convert: brings an allowed value into the type that the configuration holds.
    """

    rule: str
    accepts: Callable[[Any], bool]
    convert: Callable[[Any], Any] = lambda value: value


def read_value(value: Any, parameter: Parameter, origin: Origin) -> Setting:
    """Check one value and convert it.

    Raises:
        ConfigError: the value is not allowed.
    """
    if not parameter.accepts(value):
        raise origin.error(f"must be {parameter.rule}, got {value!r}")
    return Setting(parameter.convert(value), origin)


def read_group(values: Any, parameters: Mapping[str, Parameter], origin: Origin) -> dict[str, Setting]:
    """Check a mapping of settings.

    Raises:
        ConfigError: it is no mapping, or a name is unknown or a value not allowed.
    """
    if not isinstance(values, Mapping):
        raise origin.error(f"must be a group of settings ({', '.join(parameters)}), got {values!r}")
    settings = {}
    for name, value in values.items():
        if name not in parameters:
            raise origin.at(str(name)).error(f"unknown setting; {suggestion(str(name), parameters)}")
        settings[name] = read_value(value, parameters[name], origin.at(name))
    return settings


@dataclass(frozen=True, slots=True)
class Group:
    """The settings of an activation or of a weight.

    Attributes:
        parameters: all of them, in the order of files.
        algorithm: name of the setting that names the algorithm.
        own: by algorithm, the settings that it uses besides those that every algorithm has.
    """

    parameters: Mapping[str, Parameter]
    algorithm: str
    own: Mapping[str, tuple[str, ...]]

    @property
    def default(self) -> str:
        """The algorithm where none is named."""
        return next(iter(self.own))

    def used_by(self, algorithm: str) -> list[str]:
        """Return the settings of a layer with this algorithm, in the order of files."""
        others = {name for names in self.own.values() for name in names} - set(self.own[algorithm])
        return [name for name in self.parameters if name not in others]

    def algorithm_of(self, settings: Mapping[str, Setting]) -> str | None:
        """Return the algorithm that settings name, or that they imply because it alone uses them; None: neither.

        Raises:
            ConfigError: settings of different algorithms are mixed.
        """
        special = [name for name in settings if any(name in names for names in self.own.values())]
        if self.algorithm in settings:
            named = str(settings[self.algorithm].value)
            for name in special:
                if name not in self.own[named]:
                    allowed = ", ".join(self.own[named]) or "no settings of its own"
                    raise settings[name].error(f"contradicts {self.algorithm} {named!r}, which has {allowed}")
            return named
        candidates = list(self.own)
        for name in special:
            fitting = [algorithm for algorithm in candidates if name in self.own[algorithm]]
            if not fitting:
                others = ", ".join(other for other in special[: special.index(name)])
                raise settings[name].error(f"no algorithm has it together with {others}; remove one of them")
            candidates = fitting
        return candidates[0] if special else None

    def merge(self, below: Mapping[str, Setting], above: Mapping[str, Setting]) -> dict[str, Setting]:
        """Return the settings of two configurations of which one wins.

        Where the winning one asks for another algorithm, the other one's settings of the old algorithm go.
        """
        wanted, before = self.algorithm_of(above), self.algorithm_of(below) or self.default
        unchanged = wanted is None or wanted == before
        if not unchanged and self.algorithm not in above:
            unchanged = set(above) <= set(self.used_by(before))
        if unchanged or wanted is None:
            return {**below, **above}
        gone = {self.algorithm} | set(self.own[before]) - set(self.own[wanted])
        return {**{name: setting for name, setting in below.items() if name not in gone}, **above}


def candidate_count(search_range: tuple[float, float], search_step: float) -> int:
    """Return how many steps a search makes; 0 where its range is not as wide as one.

    The settings are decimal numbers: in binary, 0.8 - 0.7 is smaller than 0.1.
    """
    low, high, step = (Decimal(str(number)) for number in (*search_range, search_step))
    return int(((high - low) / step).to_integral_value(ROUND_CEILING)) if step <= high - low else 0


def _is_int(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_pair(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and len(value) == 2 and all(map(_is_number, value))


def _is_list_of_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def _one_of(*values: Any) -> Parameter:
    types = {type(value) for value in values}
    return Parameter(
        f"one of {', '.join(map(str, values))}",
        lambda value: type(value) in types and value in values,
    )


def _pair(value: Any) -> tuple[float, float]:
    return float(value[0]), float(value[1])


_BOOL = Parameter("true or false", lambda value: isinstance(value, bool))
_PERCENTILE = Parameter("a number above 0.5 and at most 1", lambda value: _is_number(value) and 0.5 < value <= 1, float)
_SHARE = Parameter("a number above 0 and below 1", lambda value: _is_number(value) and 0 < value < 1, float)

QUANT_ENABLE = _BOOL
"""Whether a layer is quantized."""

DMQ_BALANCER_PARAM = Parameter(
    "a number from 0.2 to 0.8", lambda value: _is_number(value) and 0.2 <= value <= 0.8, float
)
"""The migration strength of the DMQ balancer."""

BIN_COUNTS = (1024, 2048, 4096, 8192)
"""How many bins HFMG's histogram may have."""

MOST_CANDIDATES = 10_000
"""How many factors IFMR's search may try; the default are 61."""

GENERAL: dict[str, Parameter] = {
    "version": _one_of(1),
    "batch_num": Parameter("a whole number above 0", lambda value: _is_int(value) and value > 0, int),
    "activation_offset": _BOOL,
    "do_fusion": _BOOL,
    "fakequant_precision_mode": _one_of("DEFAULT", "FORCE_FP16_QUANT"),
    "skip_fusion_layers": Parameter("a list of layer names", _is_list_of_names, tuple),
}
"""The settings of a whole model."""

ACTIVATION = Group(
    parameters={
        "num_bits": _one_of(4, 8, 16),
        "max_percentile": _PERCENTILE,
        "min_percentile": _PERCENTILE,
        "search_range": Parameter(
            "two numbers above 0, the smaller one first",
            lambda value: _is_pair(value) and 0 < value[0] < value[1] < float("inf"),
            _pair,
        ),
        "search_step": Parameter("a number above 0", lambda value: _is_number(value) and value > 0, float),
        "act_algo": _one_of("ifmr", "hfmg", "minmax", "percentile", "entropy", "mse"),
        "num_of_bins": _one_of(*BIN_COUNTS),
        "asymmetric": _BOOL,
    },
    algorithm="act_algo",
    own={
        "ifmr": ("max_percentile", "min_percentile", "search_range", "search_step"),
        "hfmg": ("num_of_bins",),
        "minmax": (),
        "percentile": ("max_percentile", "min_percentile"),
        "entropy": (),
        "mse": (),
    },
)
"""The settings of an activation."""

ACTIVATION_DEFAULTS: dict[str, dict[str, Any]] = {"percentile": {"max_percentile": 0.99999, "min_percentile": 0.99999}}
"""By algorithm, the defaults that differ from those of `ActivationConfig`: 99.999 % is ONNX Runtime's percentile."""

WEIGHT = Group(
    parameters={
        "num_bits": _one_of(4, 6, 7, 8),
        "reg_param": _SHARE,
        "warm_start": _SHARE,
        "num_iteration": Parameter("a whole number, 0 or more", lambda value: _is_int(value) and value >= 0, int),
        "beta_range": Parameter(
            "two numbers above 0, the larger one first",
            lambda value: _is_pair(value) and float("inf") > value[0] > value[1] > 0,
            _pair,
        ),
        "channel_wise": _BOOL,
        "wts_algo": _one_of("arq_quantize", "ada_quantize"),
    },
    algorithm="wts_algo",
    own={"arq_quantize": (), "ada_quantize": ("reg_param", "warm_start", "num_iteration", "beta_range")},
)
"""The settings of a weight."""
