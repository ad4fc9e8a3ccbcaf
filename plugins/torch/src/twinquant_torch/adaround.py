"""AdaRound: each weight is rounded up or down, whichever keeps the layer's output, instead of to the nearest integer.

A layer is a matrix product of patches of its input, so a sample of output positions is all that training needs to keep:
its memory depends neither on how much data there is nor on how large the images are.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from twinquant.errors import CalibrationError, ModelContentError
from twinquant.numerics import integer_range, quantize_weight
from twinquant_torch.patches import Patches

__all__ = ["AdaParams", "adaround_weight"]

_ZETA, _GAMMA = 1.1, -0.1
"""How far the sigmoid is stretched, so that 0 and 1 are reached; the paper's values."""

_LEARNING_RATE = 1e-2
_POSITIONS_PER_STEP = 256
_MOST_POSITIONS = 16_384
_MOST_VALUES = 1 << 25
"""Of the kept sample: 128 MiB of float32."""


@dataclass(frozen=True, slots=True)
class AdaParams:
    """How the rounding of a weight is trained.

    Attributes:
        num_iteration: training steps; 0 rounds to nearest.
        reg_param: weight of the regularization that drives every weight to up or down, in (0, 1).
        beta_range: the regularization's exponent at the start and at the end; it falls linearly.
        warm_start: share of the steps without regularization, in (0, 1).
        seed: of the choice of samples.
    """

    num_iteration: int = 10000
    reg_param: float = 0.01
    beta_range: tuple[float, float] = (20.0, 2.0)
    warm_start: float = 0.2
    seed: int = 0


def adaround_weight(
    layer: torch.nn.Module,
    weight: Tensor,
    scale: npt.NDArray[np.float32],
    num_bits: int,
    samples: Iterable[tuple[Tensor, Tensor]],
    params: AdaParams,
) -> Tensor:
    """Return a weight whose values are on the grid of a scale, rounded so that the layer's output changes least.

    Args:
        layer: a convolution, a transposed convolution (of any number of dimensions) or a Linear; not modified. Its
            geometry and its bias are used, its weight is not.
        weight: the float weight, in the layer's shape.
        scale: float32, `(1,)` or `(C,)`: of the whole weight or of each output channel, > 0.
        num_bits: 4 to 8.
        samples: pairs of an input of the layer, as the quantized model computes it, and the float layer's output for
            the float model's input; read once.
        params: how the rounding is trained.

    Returns:
        The weight's type, shape and device: `integer * scale`, which rounding to nearest takes back to the same
        integers. No farther from the samples than the weight rounded to nearest, which is returned where training did
        not find a better one.

    Raises:
        UnsupportedModelError: the layer is of no type that can be trained.
        ModelContentError: the weight holds NaN or infinity.
        CalibrationError: there are no samples, or they hold NaN or infinity.

    Source:
        Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", 2020.
    """
    with torch.inference_mode(False), torch.no_grad():
        patches = Patches.of(layer, weight)
        inputs, targets = _sample(patches, samples, params.seed)
        matrix = patches.as_matrix(weight).float()
        step = torch.from_numpy(scale).to(weight.device).reshape(_scale_shape(matrix, scale))
        low, high = integer_range(num_bits)
        nearest = _nearest(matrix, step, num_bits)
        below = torch.floor(matrix / step)
        rest = _train(below, matrix / step - below, step, (low, high), inputs, targets, params)
        trained = torch.clamp(below + rest, low, high)
        best = trained if _error(trained * step, inputs, targets) < _error(nearest * step, inputs, targets) else nearest
        return patches.as_weight(best * step).to(weight.dtype)


def _scale_shape(matrix: Tensor, scale: npt.NDArray[np.float32]) -> tuple[int, int, int]:
    return (1, 1, 1) if scale.size == 1 else (matrix.shape[0], matrix.shape[1], 1)


def _nearest(matrix: Tensor, step: Tensor, num_bits: int) -> Tensor:
    try:
        integers = quantize_weight(matrix.cpu().numpy(), step.cpu().numpy(), num_bits)
    except ValueError as error:
        raise ModelContentError(f"{error}; leave the layer out of the quantization") from error
    return torch.from_numpy(integers).to(matrix)


def _sample(patches: Patches, samples: Iterable[tuple[Tensor, Tensor]], seed: int) -> tuple[Tensor, Tensor]:
    """Choose output positions at random, and return what the layer reads and what it should give there.

    Returns:
        float32 `(groups, n, K)` and `(groups, n, C / groups)`.
    """
    generator = torch.Generator().manual_seed(seed)
    most = max(_POSITIONS_PER_STEP, min(_MOST_POSITIONS, _MOST_VALUES // patches.values_per_position))
    ranks = torch.empty(0)
    inputs = targets = None
    for x, y in samples:
        drawn = torch.rand(patches.positions(y), generator=generator)
        # Whoever has the smallest numbers stays: every position of all samples has the same chance.
        together = torch.cat([ranks, drawn])
        chosen = torch.sort(together.argsort()[:most]).values
        old, new = chosen[chosen < ranks.numel()], chosen[chosen >= ranks.numel()] - ranks.numel()
        ranks = together[chosen]
        more_inputs, more_targets = patches.take(x, y, new)
        inputs = more_inputs if inputs is None else torch.cat([inputs[:, old], more_inputs], 1)
        targets = more_targets if targets is None else torch.cat([targets[:, old], more_targets], 1)
    if inputs is None or targets is None or not inputs.numel():
        raise CalibrationError("AdaRound saw no values of the layer; it needs at least one batch that is not empty")
    if not (torch.isfinite(inputs).all() and torch.isfinite(targets).all()):
        raise CalibrationError("AdaRound saw NaN or infinite values at the layer; check the data and the model")
    return inputs, targets


def _train(
    below: Tensor,
    fraction: Tensor,
    step: Tensor,
    limits: tuple[int, int],
    inputs: Tensor,
    targets: Tensor,
    params: AdaParams,
) -> Tensor:
    """Return 1 where a weight is rounded up and 0 where it is rounded down."""
    # h(V) = fraction, so training starts at the float weight.
    variable = (-torch.log((_ZETA - _GAMMA) / (fraction - _GAMMA) - 1)).requires_grad_()
    optimizer = torch.optim.Adam([variable], lr=_LEARNING_RATE)
    generator = torch.Generator().manual_seed(params.seed)
    count = inputs.shape[1]
    warm = params.warm_start * params.num_iteration
    first, last = params.beta_range
    for iteration in range(params.num_iteration):
        where = torch.randint(count, (min(count, _POSITIONS_PER_STEP),), generator=generator).to(inputs.device)
        with torch.enable_grad():
            up = _rectified_sigmoid(variable)
            soft = torch.clamp(below + up, *limits) * step
            loss = _error(soft, inputs[:, where], targets[:, where])
            if iteration >= warm:
                beta = first + (last - first) * (iteration - warm) / (params.num_iteration - warm)
                loss = loss + params.reg_param * (1 - (2 * up - 1).abs().pow(beta)).sum()
            (variable.grad,) = torch.autograd.grad(loss, [variable])
        optimizer.step()
    return (_rectified_sigmoid(variable) >= 0.5).float()


def _rectified_sigmoid(variable: Tensor) -> Tensor:
    return torch.clamp(torch.sigmoid(variable) * (_ZETA - _GAMMA) + _GAMMA, 0, 1)


def _error(matrix: Tensor, inputs: Tensor, targets: Tensor) -> Tensor:
    """Return the squared error of an output position, summed over its channels: the mean over the positions."""
    difference = torch.bmm(inputs, matrix.transpose(1, 2)) - targets
    return difference.pow(2).sum() / inputs.shape[1]
