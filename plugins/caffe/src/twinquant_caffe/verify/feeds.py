"""The input of a verification: checked if given, random if not."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.errors import VerificationError
from twinquant_caffe.deploy_net import DeployNet

__all__ = ["make_feeds"]

Float32Array = npt.NDArray[np.float32]

_SEED = 20240229

_QUARTER_OF_RANGE = 64
"""Random input has a standard deviation of so many steps of the quantization that reads it: a few values saturate."""


def make_feeds(deploy: DeployNet, data: Mapping[str, Any] | None) -> dict[str, Float32Array]:
    """Return an array for every input of a net.

    Args:
        deploy: the deploy net.
        data: the user's arrays; the length of their first axis is free. None: seeded random ones.

    Raises:
        VerificationError: a name, a shape or a type does not fit; says what was given and what is expected.
    """
    return _random(deploy) if data is None else _checked(deploy, data)


def _checked(deploy: DeployNet, data: Mapping[str, Any]) -> dict[str, Float32Array]:
    inputs = dict(deploy.net.inputs)
    for name in data:
        if name not in inputs:
            raise VerificationError(f"the data hold {name!r}, but the net's inputs are {sorted(inputs)}")
    feeds: dict[str, Float32Array] = {}
    for name, shape in inputs.items():
        if name not in data:
            raise VerificationError(f"the data hold no array for input {name!r}; they hold {sorted(data)}")
        array = np.asarray(data[name])
        if array.dtype.kind not in "fiu":
            raise VerificationError(f"input {name!r}: the data are {array.dtype}, the net expects float32")
        if array.ndim != len(shape) or array.shape[1:] != shape[1:]:
            raise VerificationError(
                f"input {name!r}: the data have shape {list(array.shape)}, the net expects {list(shape)} (the first "
                "length is free)"
            )
        feeds[name] = array.astype(np.float32)
    return feeds


def _random(deploy: DeployNet) -> dict[str, Float32Array]:
    generator = np.random.default_rng(_SEED)
    spread = {layer.quant.layer.bottoms[0]: _QUARTER_OF_RANGE / layer.quant.reciprocal for layer in deploy.layers[::-1]}
    return {
        name: (generator.standard_normal(shape) * spread.get(name, 1.0)).astype(np.float32)
        for name, shape in deploy.net.inputs
    }
