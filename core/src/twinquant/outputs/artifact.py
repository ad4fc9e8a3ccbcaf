"""The dual-output contract: what one save leaves on disk."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from twinquant.plan import QuantPlan

__all__ = ["Artifact", "DualOutput", "Flavor"]


class Flavor(str, Enum):
    """The two twins. The value is the word in file names."""

    FAKE_QUANT = "fake_quant"
    DEPLOY = "deploy"


@dataclass(frozen=True, slots=True)
class Artifact:
    """One twin on disk.

    Attributes:
        flavor: which twin.
        files: all its files, the model file first.
    """

    flavor: Flavor
    files: tuple[Path, ...]

    @property
    def model(self) -> Path:
        """The model file."""
        return self.files[0]


@dataclass(frozen=True, slots=True)
class DualOutput:
    """What one save wrote. A twin that was not asked for is not there: asking for it raises.

    Attributes:
        plan: what was inserted where.
        artifacts: the twins that were written.
        sidecars: files that belong to both, such as quant.json.
    """

    plan: QuantPlan
    artifacts: tuple[Artifact, ...]
    sidecars: tuple[Path, ...] = ()

    def __getitem__(self, flavor: Flavor) -> Artifact:
        for artifact in self.artifacts:
            if artifact.flavor is flavor:
                return artifact
        raise KeyError(f"no {flavor.value} model was written: save_type did not ask for one")

    @property
    def fake_quant(self) -> Artifact:
        """The twin that runs in the framework's own runtime."""
        return self[Flavor.FAKE_QUANT]

    @property
    def deploy(self) -> Artifact:
        """The twin for the device compiler."""
        return self[Flavor.DEPLOY]
