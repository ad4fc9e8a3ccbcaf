"""Which layers of a prototxt belong to the TEST phase."""

from __future__ import annotations

from twinquant_caffe.prototxt import Message

__all__ = ["in_test_phase"]

_PHASES = ("TRAIN", "TEST")


def in_test_phase(layer: Message, head: Message) -> bool:
    """Tell whether Caffe builds a layer in the TEST phase: one `include` rule holds, or no `exclude` rule does.

    Args:
        layer: its block.
        head: the net's other fields; its `state` gives the level and the stages.
    """
    state = head.message("state")
    includes = layer.messages("include")
    if includes:
        return any(_holds(rule, state) for rule in includes)
    return not any(_holds(rule, state) for rule in layer.messages("exclude"))


def _holds(rule: Message, state: Message) -> bool:
    level, stages = state.integer("level", 0), set(state.texts("stage"))
    return (
        (not rule.has("phase") or rule.choice("phase", _PHASES) == "TEST")
        and rule.integer("min_level", level) <= level <= rule.integer("max_level", level)
        and stages.issuperset(rule.texts("stage"))
        and stages.isdisjoint(rule.texts("not_stage"))
    )
