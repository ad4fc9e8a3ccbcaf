"""Write the trained digits network as a Caffe net, as it was trained: convolutions, BatchNorm and Scale layers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from twinquant_caffe.insert.made import float_blob, made_layer
from twinquant_caffe.net import Layer, make_net
from twinquant_caffe.prototxt import make
from twinquant_caffe.prototxt.literal import Identifier
from twinquant_caffe.write import write_net

__all__ = ["write_caffe"]


def write_caffe(net: nn.Module, folder: Path) -> tuple[Path, Path]:
    """Write `digits.prototxt` and `digits.caffemodel`: `image`, 1 x 1 x 8 x 8, in, `scores` out."""
    head = make(name="digits", input="image", input_shape=make(dim=(1, 1, 8, 8)))
    return write_net(make_net(head, layers(net)), folder, "digits.prototxt", "digits.caffemodel")


def layers(net: Any) -> Iterator[Layer]:
    """Yield the layers in order; layers with a record have the names that they have in the ONNX network."""
    yield convolution("conv1", "image", net.conv1)
    yield from normalized("conv1", net.norm1, relu=True)
    yield convolution("conv2_depthwise", "conv1", net.conv2_depthwise)
    yield from normalized("conv2_depthwise", net.norm2d, relu=True)
    yield convolution("conv2_pointwise", "conv2_depthwise", net.conv2_pointwise)
    yield from normalized("conv2_pointwise", net.norm2p)
    yield pooling("pool1", "conv2_pointwise", net.pool1)
    yield convolution("conv3", "pool1", net.conv3)
    yield from normalized("conv3", net.norm3, relu=True)
    yield pooling("pool2", "conv3", net.pool2)
    yield inner_product("fc1", "pool2", "fc1", net.fc1)
    yield made_layer("fc1_relu", "ReLU", ("fc1",), ("fc1",))
    yield inner_product("fc2", "fc1", "scores", net.fc2)


def convolution(name: str, bottom: str, conv: nn.Conv2d) -> Layer:
    """Return a convolution without bias."""
    parameters = make(
        num_output=conv.out_channels,
        bias_term=False,
        pad=conv.padding[0],
        kernel_size=conv.kernel_size[0],
        group=conv.groups,
    )
    blobs = (float_blob(array(conv.weight)),)
    return made_layer(
        name, "Convolution", (bottom,), (name,), parameters={"convolution_param": parameters}, blobs=blobs
    )


def normalized(name: str, norm: nn.BatchNorm2d, *, relu: bool = False) -> Iterator[Layer]:
    """Yield what stands behind a convolution, in place: BatchNorm, Scale, and a ReLU where there is one."""
    statistics = (array(norm.running_mean), array(norm.running_var), np.ones(1, np.float32))
    yield made_layer(
        f"{name}_bn",
        "BatchNorm",
        (name,),
        (name,),
        parameters={"batch_norm_param": make(use_global_stats=True, eps=norm.eps)},
        blobs=tuple(float_blob(values) for values in statistics),
    )
    yield made_layer(
        f"{name}_scale",
        "Scale",
        (name,),
        (name,),
        parameters={"scale_param": make(bias_term=True)},
        blobs=(float_blob(array(norm.weight)), float_blob(array(norm.bias))),
    )
    if relu:
        yield made_layer(f"{name}_relu", "ReLU", (name,), (name,))


def pooling(name: str, bottom: str, pool: nn.AvgPool2d) -> Layer:
    """Return an average pooling."""
    parameters = make(pool=Identifier("AVE"), kernel_size=pool.kernel_size, stride=pool.stride)
    return made_layer(name, "Pooling", (bottom,), (name,), parameters={"pooling_param": parameters})


def inner_product(name: str, bottom: str, top: str, linear: nn.Linear) -> Layer:
    """Return a fully connected layer; Caffe flattens what it reads as torch does."""
    parameters = make(num_output=linear.out_features)
    blobs = (float_blob(array(linear.weight)), float_blob(array(linear.bias)))
    return made_layer(
        name, "InnerProduct", (bottom,), (top,), parameters={"inner_product_param": parameters}, blobs=blobs
    )


def array(tensor: Tensor | None) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return the values of a parameter or buffer."""
    assert tensor is not None
    return tensor.detach().numpy()
