"""Writing both twins of a model: staged, then moved into place together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from twinquant.errors import ArgumentError
from twinquant.outputs import Artifact, DualOutput, Flavor, Target, commit, staging_folder
from twinquant.plan import QuantPlan
from twinquant.registry import Framework

__all__ = ["flavors_of", "write_twins"]

_FLAVORS = {
    "Both": (Flavor.FAKE_QUANT, Flavor.DEPLOY),
    "Fakequant": (Flavor.FAKE_QUANT,),
    "Deploy": (Flavor.DEPLOY,),
}


def flavors_of(save_type: str) -> tuple[Flavor, ...]:
    """Return the twins that a `save_type` means: "Both", "Fakequant" or "Deploy", in any case of letters.

    Raises:
        ArgumentError: it is none of the three.
    """
    for name, flavors in _FLAVORS.items():
        if isinstance(save_type, str) and save_type.lower() == name.lower():
            return flavors
    raise ArgumentError(f"save_type: must be one of {', '.join(map(repr, _FLAVORS))}, got {save_type!r}")


def write_twins(
    framework: Framework,
    graph: Any,
    plan: QuantPlan,
    target: Target,
    flavors: Sequence[Flavor],
    *,
    inputs: Sequence[Path],
    texts: Mapping[str, str] | None = None,
    durable: bool,
    progress: Callable[[str, float], None],
    start: float = 0.2,
) -> DualOutput:
    """Write twins, and texts that belong to them: all files appear together, or the target folder stays as it was.

    Args:
        framework: the framework.
        graph: the float model that the plan is for.
        plan: what is inserted where.
        target: where the files go.
        flavors: which twins.
        inputs: files that were read; none of them is replaced.
        texts: contents of further files, by what follows the prefix and its underscore in their names.
        durable: wait until the disk has everything.
        progress: called with what happens next and the fraction that is done.
        start: the fraction that was done before.

    Raises:
        ModelError: a weight or a bias cannot be quantized.
        OutputError: the files cannot be written there.
    """
    artifacts = []
    with staging_folder(target.folder) as staging:
        for index, flavor in enumerate(flavors):
            progress(f"writing the {flavor.value} model", start + (0.95 - start) * index / len(flavors))
            files = framework.write(framework.insert(graph, plan, flavor), staging, target.prefix, flavor)
            artifacts.append(Artifact(flavor, tuple(files)))
        sidecars = [*framework.sidecars(graph, plan, staging, target.prefix)]
        for name, text in (texts or {}).items():
            path = staging / (f"{target.prefix}_{name}" if target.prefix else name)
            path.write_text(text, "utf-8", newline="\n")
            sidecars.append(path)
        progress("moving the files into place", 0.95)
        return commit(
            DualOutput(plan, tuple(artifacts), tuple(sidecars)),
            staging,
            target.folder,
            inputs=inputs,
            companions=framework.companions,
            companion_endings=framework.companion_endings,
            durable=durable,
        )
