"""The search for the layers that must stay float so that a model keeps its accuracy."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from twinquant.config.settings import suggestion
from twinquant.errors import ArgumentError

__all__ = ["Search", "Strategy", "Trial", "binary_search", "choose_strategy", "search_float_layers"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trial:
    """One quantized model that was evaluated.

    Attributes:
        float_layers: the layers that were left in float, the most sensitive first.
        satisfied: whether it is accurate enough.
        loss: how much accuracy it loses, by the evaluator's measure.
    """

    float_layers: tuple[str, ...]
    satisfied: bool
    loss: float


@dataclass(frozen=True, slots=True)
class Search:
    """What a search found.

    Attributes:
        trials: everything that was evaluated, in this order; in the first one every layer is quantized.
        similarities: how similar the output of each quantized layer is to the float one, the most sensitive layer
            first; empty if that was not needed.
        stopped: the user interrupted the search.
    """

    trials: tuple[Trial, ...]
    similarities: Mapping[str, float]
    stopped: bool = False

    @property
    def best(self) -> Trial:
        """The accurate trial with the fewest layers in float; where none is accurate, the one that loses least."""
        accurate = [trial for trial in self.trials if trial.satisfied]
        if accurate:
            return min(accurate, key=lambda trial: (len(trial.float_layers), _comparable(trial.loss)))
        return min(self.trials, key=lambda trial: _comparable(trial.loss))


def _comparable(loss: float) -> float:
    """Return a loss that can be compared: NaN is worse than any number."""
    return math.inf if math.isnan(loss) else loss


Attempt = Callable[[Collection[str]], Trial]
"""Evaluates the model with some layers in float. A set that was evaluated before costs nothing."""

Strategy = Callable[[Mapping[str, float], Attempt], None]
"""Decides which sets of layers are tried in float. Gets the similarities, the most sensitive layer first, and returns
when it does not want to try more."""


def search_float_layers(
    similarities: Callable[[], Mapping[str, float]],
    evaluate: Callable[[Collection[str]], tuple[bool, float]],
    strategy: Strategy,
    note: Callable[[Search], None] = lambda _: None,
) -> Search:
    """Find few layers that must stay float so that the others can be quantized.

    The model with every layer quantized is tried first; only if it is not accurate enough are the layers ranked and the
    strategy asked. An interruption (Ctrl-C) ends the search and keeps what it found; an error ends it as well.

    Args:
        similarities: asked once, if at all: how similar the output of each quantized layer is to the float one; the
            less, the more sensitive is the layer.
        evaluate: takes the layers to leave in float; returns whether the model is accurate enough, and its loss.
        strategy: which sets are tried.
        note: is told after every trial what has been found so far.

    Raises:
        KeyboardInterrupt: there was one before the first trial was through.
        ArgumentError: the strategy names a layer that is none of the ranked ones.
    """
    trials: dict[frozenset[str], Trial] = {}
    ranking: dict[str, float] = {}

    def attempt(float_layers: Collection[str]) -> Trial:
        chosen = frozenset(float_layers)
        for name in sorted(chosen - ranking.keys(), key=str):
            raise ArgumentError(
                f"strategy: asks for the layer {name!r} in float, which is none of the quantized ones; "
                f"{suggestion(str(name), list(ranking))}"
            )
        if chosen not in trials:
            satisfied, loss = evaluate(chosen)
            trials[chosen] = Trial(tuple(name for name in ranking if name in chosen), satisfied, loss)
            verdict = "accurate enough" if satisfied else "not accurate enough"
            _logger.info("trial %d: %d layers in float, loss %g: %s", len(trials), len(chosen), loss, verdict)
            note(Search(tuple(trials.values()), ranking, stopped=True))
        return trials[chosen]

    stopped = False
    try:
        if not attempt(()).satisfied:
            # A similarity that is no number says that nothing is left of the output.
            ranking.update(sorted(similarities().items(), key=lambda item: -_comparable(-item[1])))
            strategy(ranking, attempt)
    except KeyboardInterrupt:
        if not trials:
            raise
        _logger.warning("the search was stopped; the best of %d trials is kept", len(trials))
        stopped = True
    except Exception:  # whatever the user's evaluator raises
        if trials:
            _logger.error("the search failed after %d trials; what was best among them is in its files", len(trials))
        raise
    return Search(tuple(trials.values()), ranking, stopped)


def binary_search(similarities: Mapping[str, float], attempt: Attempt) -> None:
    """Find the smallest number of layers, the most sensitive first, that have to stay float, by halving the interval.

    It takes for granted that more layers in float are never less accurate. At least one layer stays quantized.
    """
    layers = list(similarities)
    fewest, most = 1, len(layers) - 1
    while fewest <= most:
        middle = (fewest + most) // 2
        if attempt(layers[:middle]).satisfied:
            most = middle - 1
        else:
            fewest = middle + 1


_STRATEGIES: dict[str, Strategy] = {"BinarySearch": binary_search}


def choose_strategy(strategy: Any) -> Strategy:
    """Return the strategy that a user means.

    Args:
        strategy: a name, a function, or an object with the vendor's two methods: `initialize(similarities)` and
            `update_quant_config((satisfied, loss))`, which returns `{"stop_flag": bool, "roll_back_config": {layer:
            whether it is quantized}}`, or None to stop.

    Raises:
        ArgumentError: it is nothing of this.
    """
    if isinstance(strategy, str):
        if strategy in _STRATEGIES:
            return _STRATEGIES[strategy]
    elif isinstance(strategy, type):
        pass  # an instance is meant, which only the user can make
    elif all(callable(getattr(strategy, method, None)) for method in ("initialize", "update_quant_config")):
        return _vendor_strategy(strategy)
    elif callable(strategy):
        chosen: Strategy = strategy
        return chosen
    raise ArgumentError(
        f"strategy: must be {' or '.join(map(repr, _STRATEGIES))}, a function, or an object with the methods "
        f"initialize and update_quant_config, got {strategy!r}"
    )


def _vendor_strategy(strategy: Any) -> Strategy:
    def search(similarities: Mapping[str, float], attempt: Attempt) -> None:
        strategy.initialize(dict(similarities))
        trial = attempt(())
        stop = False
        while not stop:
            answer = strategy.update_quant_config((trial.satisfied, trial.loss))
            if answer is None:
                return
            stop, float_layers = _read_answer(answer, similarities)
            trial = attempt(float_layers)

    return search


def _read_answer(answer: Any, layers: Collection[str]) -> tuple[bool, list[str]]:
    """Return whether a vendor's strategy wants to stop, and which layers are tried in float before.

    Raises:
        ArgumentError: the answer is not of the vendor's form, or names a layer that is none of `layers`.
    """
    if not (
        isinstance(answer, Mapping)
        and {"stop_flag", "roll_back_config"} <= answer.keys()
        and isinstance(answer["roll_back_config"], Mapping)
        and all(isinstance(quantized, (bool, np.bool_)) for quantized in answer["roll_back_config"].values())
    ):
        raise ArgumentError(
            'strategy: update_quant_config must return {"stop_flag": whether to stop, "roll_back_config": {layer: True '
            f"if it is quantized, else False}}}}, or None to stop at once, got {answer!r}"
        )
    for name in answer["roll_back_config"]:
        if name not in layers:
            raise ArgumentError(
                f"strategy: the roll_back_config names {name!r}, which is none of the quantized layers; "
                f"{suggestion(str(name), list(layers))}"
            )
    return bool(answer["stop_flag"]), [name for name, quantized in answer["roll_back_config"].items() if not quantized]
