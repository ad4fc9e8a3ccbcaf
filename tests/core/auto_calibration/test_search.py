"""Finding the layers that must stay float: which models are tried, and which one is the best."""

from __future__ import annotations

import math

import pytest

from twinquant.calibration.auto import Search, Trial, binary_search, choose_strategy, search_float_layers
from twinquant.errors import ArgumentError

SIMILARITIES = {"d": 0.99, "b": 0.7, "e": 0.999, "a": 0.5, "c": 0.9}  # most sensitive first: a b c d e


class Accuracy:
    """Judges a model by its float layers, and notes what it was asked."""

    def __init__(self, needed):
        self.needed = set(needed)
        self.asked = []

    def __call__(self, float_layers):
        self.asked.append(sorted(float_layers))
        missing = self.needed - set(float_layers)
        return not missing, float(len(missing))


def search(accuracy, strategy=binary_search):
    return search_float_layers(lambda: SIMILARITIES, accuracy, strategy)


def test_a_model_that_is_accurate_with_every_layer_quantized_is_the_only_trial():
    accuracy = Accuracy([])
    found = search_float_layers(lambda: pytest.fail("no layer needs to be ranked"), accuracy, binary_search)
    assert accuracy.asked == [[]]
    assert found.best == Trial((), True, 0.0)


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_the_binary_search_finds_the_smallest_number_of_most_sensitive_layers(count):
    needed = "abcd"[:count]
    assert search(Accuracy(needed)).best.float_layers == tuple(needed)


def test_the_binary_search_halves_the_interval():
    accuracy = Accuracy("abc")
    search(accuracy)
    # Of the sizes 1 to 4: the middle is 2, too few; of 3 and 4 it is 3, enough; nothing is left between.
    assert accuracy.asked == [[], ["a", "b"], ["a", "b", "c"]]


def test_at_least_one_layer_stays_quantized():
    accuracy = Accuracy("abcde")
    found = search(accuracy)
    assert ["a", "b", "c", "d", "e"] not in accuracy.asked
    assert not found.best.satisfied


def test_the_layers_of_a_trial_are_listed_by_sensitivity():
    assert search(Accuracy("bac")).best.float_layers == ("a", "b", "c")


def test_the_ranking_puts_the_least_similar_layer_first():
    assert list(search(Accuracy("a")).similarities) == ["a", "b", "c", "d", "e"]


def test_of_accurate_trials_the_one_with_the_fewest_float_layers_is_the_best():
    few, many = Trial(("a",), True, 0.4), Trial(("a", "b"), True, 0.1)
    assert Search((many, few), {}).best == few


def test_without_an_accurate_trial_the_smallest_loss_is_the_best():
    worse, better = Trial((), False, 0.4), Trial(("a", "b"), False, 0.1)
    assert Search((worse, better), {}).best == better


def test_an_interruption_keeps_the_trials_so_far():
    def evaluate(float_layers):
        if len(float_layers) == 1:
            raise KeyboardInterrupt
        return len(float_layers) >= 2, 0.0

    found = search(evaluate)
    assert found.stopped
    assert found.best.float_layers == ("a", "b")


def test_an_interruption_before_the_first_trial_is_passed_on():
    def evaluate(float_layers):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(evaluate)


def test_a_set_of_layers_is_evaluated_once():
    accuracy = Accuracy("ab")

    def stubborn(similarities, attempt):
        del similarities
        assert attempt(["a"]) == attempt(["a"])
        assert not attempt([]).satisfied

    search(accuracy, stubborn)
    assert accuracy.asked == [[], ["a"]]


class OneMoreEachTime:
    """A strategy in the vendor's form: one more layer in float each time."""

    def initialize(self, ranking_info):
        self.layers = sorted(ranking_info, key=ranking_info.get)
        self.count = 0

    def update_quant_config(self, metric_eval):
        satisfied, _ = metric_eval
        if not satisfied:
            self.count += 1
        rolled_back = {name: position >= self.count for position, name in enumerate(self.layers)}
        return {"stop_flag": satisfied, "roll_back_config": rolled_back}


def test_a_strategy_of_the_vendors_form_is_followed():
    accuracy = Accuracy("abc")
    found = search(accuracy, choose_strategy(OneMoreEachTime()))
    assert accuracy.asked == [[], ["a"], ["a", "b"], ["a", "b", "c"]]
    assert found.best.float_layers == ("a", "b", "c")


def test_the_vendors_name_means_the_binary_search():
    assert choose_strategy("BinarySearch") is binary_search


def test_a_function_is_a_strategy():
    def mine(similarities, attempt):
        del similarities, attempt

    assert choose_strategy(mine) is mine


class NeverBegun:
    """Half of the vendor's form."""

    def update_quant_config(self, metric_eval):
        return None


@pytest.mark.parametrize("strategy", ["binary", 3, None, OneMoreEachTime, NeverBegun()])
def test_anything_else_is_no_strategy(strategy):
    with pytest.raises(ArgumentError, match=r"strategy: must be 'BinarySearch', a function.*got"):
        choose_strategy(strategy)


def test_an_infinite_loss_is_never_the_best():
    finite, infinite = Trial((), False, 2.0), Trial(("a",), False, math.inf)
    assert Search((infinite, finite), {}).best == finite


@pytest.mark.parametrize("satisfied", [True, False])
def test_a_loss_that_is_no_number_is_never_the_best(satisfied):
    number, none = Trial(("a",), satisfied, 2.0), Trial(("b",), satisfied, math.nan)
    assert Search((none, number), {}).best == number


def test_a_similarity_that_is_no_number_ranks_first():
    found = search_float_layers(lambda: {"a": 0.9, "b": math.nan, "c": 0.5}, Accuracy("b"), binary_search)
    assert list(found.similarities) == ["b", "c", "a"]
    assert found.best.float_layers == ("b",)


class Answering:
    """A strategy in the vendor's form that always gives one answer."""

    def __init__(self, answer):
        self.answer = answer

    def initialize(self, ranking_info):
        pass

    def update_quant_config(self, metric_eval):
        return self.answer


def test_a_strategy_of_the_vendors_form_may_stop_at_once():
    accuracy = Accuracy("a")
    search(accuracy, choose_strategy(Answering(None)))
    assert accuracy.asked == [[]]


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {"stop_flag": True},
        {"roll_back_config": {"a": False}},
        {"stop_flag": True, "roll_back_config": ["a"]},
        {"stop_flag": True, "roll_back_config": {"a": "float"}},
        3,
    ],
)
def test_an_answer_of_another_form_is_an_error_that_shows_it(answer):
    with pytest.raises(ArgumentError, match=r"update_quant_config must return \{\"stop_flag\".*got") as caught:
        search(Accuracy("a"), choose_strategy(Answering(answer)))
    assert repr(answer) in str(caught.value)


@pytest.mark.parametrize("quantized", [True, False])
def test_an_unknown_layer_in_the_answer_is_an_error_with_close_names(quantized):
    answer = {"stop_flag": True, "roll_back_config": {"conv_1": quantized}}
    with pytest.raises(
        ArgumentError, match=r"names 'conv_1', which is none of the quantized layers; did you mean 'conv1'"
    ):
        search_float_layers(lambda: {"conv1": 0.5}, Accuracy(["conv1"]), choose_strategy(Answering(answer)))


def test_an_unknown_layer_of_a_function_is_an_error():
    def mistaken(similarities, attempt):
        attempt(["f"])

    with pytest.raises(ArgumentError, match="strategy: asks for the layer 'f' in float, which is none"):
        search(Accuracy("a"), mistaken)
