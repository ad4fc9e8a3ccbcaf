"""Folding BatchNorm and Scale layers into the layers beside them."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from twinquant_caffe.fuse.chains import find_chains_before, find_chains_behind
from twinquant_caffe.fuse.edit import fold_before, fold_behind
from twinquant_caffe.net import CaffeNet

__all__ = ["fuse_net"]

_logger = logging.getLogger(__name__)


def fuse_net(net: CaffeNet, skip: Collection[str]) -> tuple[CaffeNet, Sequence[str]]:
    """Fold BatchNorm and Scale layers into Convolution, Deconvolution and InnerProduct layers.

    What follows a layer is folded into it; then a BatchNorm that is left, with the Scale behind it, is folded into the
    convolution that it precedes. Tensors in between that other layers read, too, keep their layers. A fused layer keeps
    its name and gets a bias. Weights are computed when they are read. Why something was not folded is told at level
    INFO by the loggers of this package.

    What `skip` alone keeps from being folded into the layer that it follows is not folded into the convolution behind
    it either. So the weight of a layer depends on whether that layer itself is skipped, and on no other layer: factors
    of some layers fit the net, whether or not it is known how layers without factors were fused.

    Args:
        net: the net; it is not modified.
        skip: names of the layers into which nothing is folded.

    Returns:
        The fused net, whose `fused` names what was folded, and the names of the layers into which something was.
    """
    possible = find_chains_behind(net)
    behind = [chain for chain in possible if net.layers[chain.layer].name not in skip]
    skipped = [chain for chain in possible if net.layers[chain.layer].name in skip]
    partly = fold_behind(net, behind) if behind else net
    before = find_chains_before(
        partly, skip, reserved={net.layers[index].name for chain in skipped for index in chain.folded}
    )
    fused = fold_before(partly, before) if before else partly
    names = {net.layers[chain.layer].name for chain in behind} | {partly.layers[chain.layer].name for chain in before}
    for name in names:
        _logger.debug("layer %r stands for %s", name, ", ".join(map(repr, fused.original_names(name))))
    return fused, tuple(layer.name for layer in fused.layers if layer.name in names)
