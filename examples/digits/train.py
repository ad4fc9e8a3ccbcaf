"""Train the digits network with PyTorch and quantize the module itself: from training to both twins.

Needs what make_networks.py needs, and the torch plugin; see README.md beside this script.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import torch
from dataset import Digits, as_input, split
from make_networks import train

import twinquant

BATCH = 32
BATCHES = 10
FOLDER = Path("results")


def batches(digits: Digits) -> list[torch.Tensor]:
    """Return the calibration data: the first training digits."""
    return list(torch.from_numpy(as_input(digits.images[: BATCH * BATCHES])).split(BATCH))


def accuracy_of(scores: np.ndarray, digits: Digits) -> float:
    """Return the share of the digits that were read right."""
    return float(np.mean(scores.argmax(axis=1) == digits.labels))


def main() -> None:
    """Train, quantize the module, verify the twins, and compare the accuracies."""
    training, held_out = split()
    net = train(training)
    images = torch.from_numpy(as_input(held_out.images))
    with torch.no_grad():
        print(f"float module:    {accuracy_of(net(images).numpy(), held_out):.2%}")

    data = batches(training)
    result = twinquant.quantize(
        net,
        data,
        FOLDER / "digits",
        batch_num=len(data),
        example_inputs=data[0],
        dynamic_axes={"image": {0: "batch"}},
    )
    report = twinquant.verify(result.output.fake_quant.model, result.output.deploy.model)
    session = onnxruntime.InferenceSession(str(result.output.fake_quant.model), providers=["CPUExecutionProvider"])
    (scores,) = session.run(None, {"image": images.numpy()})
    print(f"fake-quant twin: {accuracy_of(scores, held_out):.2%}")
    print(f"the twins agree: {report.agree}")
    print(f"quantized: {', '.join(layer.name for layer in result.output.plan)}")


if __name__ == "__main__":
    main()
