"""TwinQuant: a model and its calibration record become two twins, one to simulate and one to deploy.

The public names are here, loaded when they are first used: importing the package costs next to nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from twinquant.errors import TwinQuantError

if TYPE_CHECKING:
    from twinquant.api import save_model, verify
    from twinquant.calibration_api import QuantizeResult, calibrate, quantize
    from twinquant.data import DataOptions
    from twinquant.outputs import Artifact, DualOutput, Flavor
    from twinquant.plan import QuantPlan
    from twinquant.records import RecordSet
    from twinquant.verification import VerifyReport

__all__ = [
    "Artifact",
    "DataOptions",
    "DualOutput",
    "Flavor",
    "QuantPlan",
    "QuantizeResult",
    "RecordSet",
    "TwinQuantError",
    "VerifyReport",
    "__version__",
    "calibrate",
    "quantize",
    "save_model",
    "verify",
]

__version__ = "0.1.0"

_HOMES = {
    "Artifact": "twinquant.outputs",
    "DataOptions": "twinquant.data",
    "DualOutput": "twinquant.outputs",
    "Flavor": "twinquant.outputs",
    "QuantPlan": "twinquant.plan",
    "QuantizeResult": "twinquant.calibration_api",
    "RecordSet": "twinquant.records",
    "VerifyReport": "twinquant.verification",
    "calibrate": "twinquant.calibration_api",
    "quantize": "twinquant.calibration_api",
    "save_model": "twinquant.api",
    "verify": "twinquant.api",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
