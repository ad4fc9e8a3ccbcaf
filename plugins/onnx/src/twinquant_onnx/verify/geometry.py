"""How a convolution's attributes place its kernel: pads, strides and output lengths for given inputs."""

from __future__ import annotations

import onnx

from twinquant.errors import VerificationError
from twinquant.verification import Window

__all__ = ["convolution_window", "read_groups", "transposed_window"]


def _ints(node: onnx.NodeProto, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
    values = next((tuple(a.ints) for a in node.attribute if a.name == name), default)
    if len(values) != len(default):
        raise VerificationError(f"node {node.name!r}: {name} has {len(values)} values, expected {len(default)}")
    return values


def _positive(node: onnx.NodeProto, name: str, rank: int) -> tuple[int, ...]:
    values = _ints(node, name, (1,) * rank)
    if min(values) <= 0:
        raise VerificationError(f"node {node.name!r}: {name} is {list(values)}, expected positive numbers")
    return values


def _auto_pad(node: onnx.NodeProto) -> str:
    return next((a.s.decode() for a in node.attribute if a.name == "auto_pad"), "NOTSET")


def read_groups(node: onnx.NodeProto, channels: int) -> int:
    """Return the number of groups that a convolution divides its input channels into.

    Raises:
        VerificationError: the channels cannot be divided into that many.
    """
    groups = next((int(a.i) for a in node.attribute if a.name == "group"), 1)
    if groups <= 0 or channels % groups:
        raise VerificationError(f"node {node.name!r}: {channels} channels cannot be divided into {groups} groups")
    return groups


def _head(total: int, auto_pad: str) -> int:
    """Return the part of a padding that goes to the begin; only SAME_UPPER puts the odd one at the end."""
    return total // 2 if auto_pad == "SAME_UPPER" else total - total // 2


def convolution_window(
    node: onnx.NodeProto, channels: int, spatial: tuple[int, ...], kernel: tuple[int, ...]
) -> Window:
    """Place the kernel of a Conv.

    Args:
        node: the Conv.
        channels: number of input channels.
        spatial: lengths of the input's spatial axes.
        kernel: lengths of the kernel.

    Raises:
        VerificationError: the attributes contradict each other or leave no output.
    """
    rank = len(kernel)
    if _ints(node, "kernel_shape", kernel) != kernel or len(spatial) != rank:
        raise VerificationError(
            f"node {node.name!r}: kernel_shape or the input's rank does not fit the weight's {kernel}"
        )
    strides, dilations = _positive(node, "strides", rank), _positive(node, "dilations", rank)
    pads = _ints(node, "pads", (0,) * (2 * rank))
    auto_pad = _auto_pad(node)
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    if auto_pad.startswith("SAME"):
        out = tuple(-(-size // stride) for size, stride in zip(spatial, strides, strict=True))
        totals = [max((o - 1) * s + r - n, 0) for o, s, r, n in zip(out, strides, reach, spatial, strict=True)]
        return _window(
            node,
            read_groups(node, channels),
            strides,
            dilations,
            tuple(_head(total, auto_pad) for total in totals),
            out,
        )
    if auto_pad == "VALID":
        pads = (0,) * (2 * rank)
    begin, end = pads[:rank], pads[rank:]
    out = tuple((n + b + e - r) // s + 1 for n, b, e, r, s in zip(spatial, begin, end, reach, strides, strict=True))
    return _window(node, read_groups(node, channels), strides, dilations, begin, out)


def transposed_window(node: onnx.NodeProto, channels: int, spatial: tuple[int, ...], kernel: tuple[int, ...]) -> Window:
    """Place the kernel of a ConvTranspose; see `convolution_window`."""
    rank = len(kernel)
    if _ints(node, "kernel_shape", kernel) != kernel or len(spatial) != rank:
        raise VerificationError(
            f"node {node.name!r}: kernel_shape or the input's rank does not fit the weight's {kernel}"
        )
    strides, dilations = _positive(node, "strides", rank), _positive(node, "dilations", rank)
    pads, extra = _ints(node, "pads", (0,) * (2 * rank)), _ints(node, "output_padding", (0,) * rank)
    auto_pad = _auto_pad(node)
    reach = tuple((k - 1) * d + 1 for k, d in zip(kernel, dilations, strict=True))
    full = tuple(s * (n - 1) + e + r for s, n, e, r in zip(strides, spatial, extra, reach, strict=True))
    wanted = next((tuple(a.ints)[-rank:] for a in node.attribute if a.name == "output_shape"), None)
    if wanted is None and auto_pad.startswith("SAME"):
        wanted = tuple(min(n * s, f) for n, s, f in zip(spatial, strides, full, strict=True))
    if wanted is not None:
        begin = tuple(_head(max(f - w, 0), auto_pad) for f, w in zip(full, wanted, strict=True))
        return _window(node, read_groups(node, channels), strides, dilations, begin, wanted)
    if auto_pad == "VALID":
        pads = (0,) * (2 * rank)
    out = tuple(f - b - e for f, b, e in zip(full, pads[:rank], pads[rank:], strict=True))
    return _window(node, read_groups(node, channels), strides, dilations, pads[:rank], out)


def _window(
    node: onnx.NodeProto,
    groups: int,
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    begin: tuple[int, ...],
    out: tuple[int, ...],
) -> Window:
    if min(out) <= 0:
        raise VerificationError(f"node {node.name!r} has no output: its lengths would be {list(out)}")
    return Window(strides, dilations, begin, out, groups)
