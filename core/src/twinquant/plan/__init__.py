"""WHAT TO INSERT WHERE: pure decisions from records and layer descriptions; no I/O, no framework."""

from twinquant.plan.builder import build_plan
from twinquant.plan.factors import check_balance_factors
from twinquant.plan.insertion import (
    ActivationQuant,
    BiasQuant,
    LayerPlan,
    OutputDequant,
    QuantPlan,
    SkippedLayer,
    WeightQuant,
)
from twinquant.plan.layer import LayerInfo, LayerKind

__all__ = [
    "ActivationQuant",
    "BiasQuant",
    "LayerInfo",
    "LayerKind",
    "LayerPlan",
    "OutputDequant",
    "QuantPlan",
    "SkippedLayer",
    "WeightQuant",
    "build_plan",
    "check_balance_factors",
]
