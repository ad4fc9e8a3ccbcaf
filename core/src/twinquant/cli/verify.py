"""`twinquant verify`: do two twins agree?"""

from __future__ import annotations

import argparse

import twinquant
from twinquant.cli.console import Console
from twinquant.cli.numbers import count, number
from twinquant.verification.report import LayerVerdict, VerifyReport

__all__ = ["run"]


def run(arguments: argparse.Namespace, console: Console) -> int:
    """Print one row per layer and the verdict; 1 if the twins disagree."""
    report = twinquant.verify(arguments.fake_quant, arguments.deploy, arguments.data, framework=arguments.framework)
    header = ("layer", "operator", "checked as", "agrees", "difference", "allowed", "free-running")
    console.table(header, map(_row, (*report.layers, *report.outputs)))
    for verdict in report.layers:
        for finding in (*verdict.problems, *verdict.notes):
            console.line(f"{verdict.name}: {finding}")
    for problem in report.problems:
        console.line(problem)
    console.line(f"\n{_verdict(report)}")
    return 0 if report.agree else 1


def _row(verdict: LayerVerdict) -> tuple[str, ...]:
    is_output = verdict.op_type == "output"
    return (
        verdict.name,
        verdict.op_type,
        "-" if is_output else verdict.mode,
        "-" if is_output else ("yes" if verdict.agree else "NO"),
        number(verdict.max_difference),
        number(None if verdict.max_difference is None else verdict.tolerance),
        number(verdict.free_running),
    )


def _verdict(report: VerifyReport) -> str:
    if report.agree:
        return f"the twins agree: {count(len(report.layers), 'layer')} checked"
    wrong = sum(not verdict.agree for verdict in report.layers)
    besides = f", {count(len(report.problems), 'problem')} outside of them" if report.problems else ""
    return f"the twins DISAGREE: {wrong} of {count(len(report.layers), 'layer')}{besides}"
