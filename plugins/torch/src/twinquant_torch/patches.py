"""A convolution, a transposed convolution or a Linear as what they all are: one matrix product per output position."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from twinquant.errors import UnsupportedModelError

__all__ = ["Patches"]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True, slots=True, eq=False)
class Patches:
    """The geometry of a layer.

    Attributes:
        shape: of the weight.
        bias: float32 `(C,)` or None.
        groups: number of groups.
        transposed: the layer is a transposed convolution; its weight has the input channels first.
        stride: of each spatial axis; a Linear has no spatial axes.
        padding: zeros before the first value of each spatial axis.
        dilation: of each spatial axis.
    """

    shape: tuple[int, ...]
    bias: Tensor | None
    groups: int = 1
    transposed: bool = False
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()

    @classmethod
    def of(cls, layer: nn.Module, weight: Tensor) -> Patches:
        """Return the geometry of a layer.

        Args:
            layer: the layer; a convolution is one that pads with zeros.
            weight: its weight, or what takes its place.

        Raises:
            UnsupportedModelError: the layer is none of these.
        """
        bias: Any = getattr(layer, "bias", None)
        bias = None if bias is None else bias.detach().float().to(weight.device)
        shape = tuple(weight.shape)
        if isinstance(layer, nn.Linear):
            return cls(shape, bias)
        if isinstance(layer, _TRANSPOSED):
            sizes = (_numbers(layer.stride), _numbers(layer.padding), _numbers(layer.dilation))
            return cls(shape, bias, layer.groups, True, *sizes)
        if isinstance(layer, _CONVOLUTIONS):
            dilation = _numbers(layer.dilation)
            before = _padding(layer.padding, dilation, shape[2:])
            return cls(shape, bias, layer.groups, False, _numbers(layer.stride), before, dilation)
        raise UnsupportedModelError(
            f"AdaRound trains convolutions and Linear, not {type(layer).__name__}; use arq_quantize for this layer"
        )

    @property
    def values_per_position(self) -> int:
        """How many values an output position reads and gives."""
        channels_in, channels_out = self._channels()
        return channels_in * prod(self.shape[2:]) + channels_out

    def positions(self, y: Tensor) -> int:
        """Return how many output positions an output has."""
        return y.numel() // self._channels()[1]

    def as_matrix(self, weight: Tensor) -> Tensor:
        """Arrange a weight as `(groups, C / groups, K)`, K running over the kernel, then over the input channels."""
        taps = prod(self.shape[2:])
        if self.transposed:
            parts = weight.reshape(self.groups, self.shape[0] // self.groups, self.shape[1], taps).permute(0, 2, 3, 1)
        else:
            parts = weight.reshape(self.groups, self.shape[0] // self.groups, self.shape[1], taps).permute(0, 1, 3, 2)
        return parts.flatten(2)

    def as_weight(self, matrix: Tensor) -> Tensor:
        """Undo `as_matrix`."""
        parts = matrix.reshape(*matrix.shape[:2], prod(self.shape[2:]), -1)
        return parts.permute((0, 3, 1, 2) if self.transposed else (0, 1, 3, 2)).reshape(self.shape)

    def take(self, x: Tensor, y: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
        """Return what the layer reads at some output positions, and its output there without the bias.

        Args:
            x: an input of the layer; a batch, or one example without the batch axis.
            y: its output.
            where: int64 `(n,)`: numbers of positions.

        Returns:
            float32 `(groups, n, K)` and `(groups, n, C / groups)`.
        """
        channels_in, channels_out = self._channels()
        spatial = len(self.stride)
        if spatial:
            x, y = (values if values.dim() == spatial + 2 else values.unsqueeze(0) for values in (x, y))
            x, y = x.movedim(1, -1), y.movedim(1, -1)
            rows = self._gather(x, y.shape[:-1], where.to(x.device))
        else:
            rows = x.reshape(-1, channels_in)[where.to(x.device)]
        device = x.device
        outputs = y.reshape(-1, channels_out)[where.to(y.device)].float().to(device)
        if self.bias is not None:
            outputs = outputs - self.bias.to(device)
        rows = rows.float().reshape(where.numel(), -1, self.groups, channels_in // self.groups)
        groups_first = rows.permute(2, 0, 1, 3).flatten(2)
        return groups_first, outputs.reshape(where.numel(), self.groups, -1).transpose(0, 1).contiguous()

    def _gather(self, x: Tensor, output: tuple[int, ...], where: Tensor) -> Tensor:
        """Return `(n, *kernel, channels)`: the values of an input that output positions read, 0 for padding."""
        kernel = self.shape[2:]
        image, *at = torch.unravel_index(where, output)
        index = [image.reshape(-1, *[1] * len(kernel))]
        inside = torch.ones_like(index[0], dtype=torch.bool)
        for axis, (position, taps) in enumerate(zip(at, kernel, strict=True)):
            offsets = torch.arange(taps, device=where.device) * self.dilation[axis]
            if self.transposed:
                spot = position[:, None] + self.padding[axis] - offsets
                hit = spot % self.stride[axis] == 0
                spot = torch.div(spot, self.stride[axis], rounding_mode="floor")
            else:
                spot = position[:, None] * self.stride[axis] - self.padding[axis] + offsets
                hit = torch.ones_like(spot, dtype=torch.bool)
            hit &= (spot >= 0) & (spot < x.shape[axis + 1])
            shape = [where.numel(), *[1] * len(kernel)]
            shape[axis + 1] = taps
            index.append(spot.clamp(0, x.shape[axis + 1] - 1).reshape(shape))
            inside = inside & hit.reshape(shape)
        return x[tuple(index)] * inside.unsqueeze(-1)

    def _channels(self) -> tuple[int, int]:
        """Return the number of input and of output channels."""
        first, second = self.shape[0], self.shape[1] * self.groups
        return (first, second) if self.transposed else (second, first)


def _numbers(value: Any) -> tuple[int, ...]:
    return tuple(int(number) for number in value)


def _padding(padding: Any, dilation: tuple[int, ...], kernel: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many zeros are padded before each spatial axis."""
    if padding == "valid":
        return (0,) * len(kernel)
    if padding == "same":
        return tuple(rate * (taps - 1) // 2 for rate, taps in zip(dilation, kernel, strict=True))
    return _numbers(padding)
