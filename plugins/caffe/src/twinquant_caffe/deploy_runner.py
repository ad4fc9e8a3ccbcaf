"""Running a deploy net as a whole without a device: quantized layers on exact integers, all others in OpenCV."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from twinquant.errors import TwinQuantError
from twinquant_caffe.deploy_net import DeployLayer, DeployNet, read_deploy
from twinquant_caffe.insert.made import made_layer
from twinquant_caffe.integer_layers import accumulate, dequantize, quantize, result_shape
from twinquant_caffe.net import BlobVersion, CaffeNet, Layer
from twinquant_caffe.opencv import import_opencv
from twinquant_caffe.prototxt import Message, make
from twinquant_caffe.run import open_net
from twinquant_caffe.shapes import ShapeRule

__all__ = ["DeployRunner"]

Float32Array = npt.NDArray[np.float32]


class DeployRunner:
    """A deploy net, ready to run on one input after another; close it, or use it in a `with` statement.

    Args:
        deploy: the deploy prototxt, or the net that was read from it.
        wanted: tensors to return besides the outputs of the net.

    Raises:
        CapabilityError: OpenCV is missing.
        ModelFileError: a file is missing or damaged.
        UnsupportedModelError: OpenCV cannot run the float layers.
        VerificationError: the quantized layers make no sense.
    """

    def __init__(self, deploy: Path | DeployNet, wanted: Collection[BlobVersion] = ()) -> None:
        self.deploy = deploy if isinstance(deploy, DeployNet) else read_deploy(deploy)
        # OpenCV keeps layer types for the whole process: every runner has one of its own.
        cv2, kind = import_opencv(), f"TwinQuantInteger{id(self):x}"
        self._failures: list[Exception] = []
        layers = {layer.dequant.name: layer for layer in self.deploy.layers}
        with ExitStack() as stack:
            # OpenCV takes the class without keeping it alive.
            self._class = _layer_class(layers, self._failures)
            cv2.dnn_registerLayer(kind, self._class)
            stack.callback(cv2.dnn_unregisterLayer, kind)
            net = _runnable(self.deploy, kind)
            self._outputs = net.outputs
            self._run = open_net(net, [*net.outputs, *wanted], rules={kind: _shape_rule(layers)})
            self._open = stack.pop_all()

    def __enter__(self) -> DeployRunner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let OpenCV forget this net's layers."""
        self._open.close()

    def run(self, feeds: Mapping[str, Float32Array]) -> dict[str, Float32Array]:
        """Run the net and return its outputs by the names of their blobs.

        Args:
            feeds: an array for every input.

        Raises:
            VerificationError: a quantized layer does not run on this input.
            UnsupportedModelError: OpenCV cannot run the rest.
        """
        values = self.tensors(feeds)
        return {version.blob: values[version] for version in self._outputs}

    def tensors(self, feeds: Mapping[str, Float32Array]) -> dict[BlobVersion, Float32Array]:
        """Run the net and return its outputs and the wanted tensors; raises what `run` raises."""
        self._failures.clear()
        try:
            values = self._run(feeds)
        except TwinQuantError:
            if not self._failures:
                raise
        if self._failures:
            raise self._failures[0]
        return values


def _runnable(deploy: DeployNet, kind: str) -> CaffeNet:
    """Return the net with one layer of our own in place of every Quant, quantized layer and DeQuant.

    Accumulators go beyond what OpenCV's float32 holds exactly, so that they never leave that layer.
    """
    replaced = {layer.dequant.name: layer for layer in deploy.layers}
    dropped = {name for layer in deploy.layers for name in (layer.quant.layer.name, layer.layer.name)}
    layers: list[Layer] = []
    for layer in deploy.net.layers:
        if layer.name in replaced:
            source = replaced[layer.name].quant.layer.bottoms
            parameter: Message = make(param_str=layer.name)
            layers.append(made_layer(layer.name, kind, source, layer.tops, parameters={"python_param": parameter}))
        elif layer.name not in dropped:
            layers.append(layer)
    return replace(deploy.net.with_layers(layers), files=(deploy.twin.prototxt, deploy.twin.caffemodel))


def _shape_rule(layers: Mapping[str, DeployLayer]) -> ShapeRule:
    def rule(layer: Layer, reads: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
        try:
            return [result_shape(layers[layer.name], reads[0])]
        except TwinQuantError:
            return []  # running it tells what is wrong

    return rule


def _layer_class(layers: Mapping[str, DeployLayer], failures: list[Exception]) -> type[Any]:
    """Return the class that OpenCV builds our layers from."""

    class IntegerLayer:
        # OpenCV 4.14 hangs after any exception that Python code raises: all are kept for the runner to raise.

        def __init__(self, params: Mapping[str, Any], blobs: Sequence[Any]) -> None:
            del blobs
            self._layer = layers[params["param_str"]]
            self._shape: tuple[int, ...] = ()

        def getMemoryShapes(self, inputs: Sequence[Any]) -> Sequence[Any]:  # noqa: N802  the name that OpenCV calls
            try:
                self._shape = result_shape(self._layer, tuple(inputs[0]))
            except Exception as error:  # noqa: BLE001  see above
                failures.append(error)
                self._shape = tuple(inputs[0])
            return [list(self._shape)]

        def forward(self, inputs: Sequence[Float32Array]) -> Sequence[Float32Array]:
            try:
                integers = quantize(self._layer.quant, np.asarray(inputs[0]))
                return [dequantize(self._layer, accumulate(self._layer, integers))]
            except Exception as error:  # noqa: BLE001  see above
                failures.append(error)
                return [np.zeros(self._shape, np.float32)]

    return IntegerLayer
