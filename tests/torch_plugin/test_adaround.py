"""AdaRound keeps a layer's output closer than rounding to nearest does."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import twinquant
from twinquant.config import create_config
from twinquant.errors import CalibrationError, ConfigError, ModelContentError, UnsupportedModelError
from twinquant_torch import TorchModel
from twinquant_torch.adaround import AdaParams, adaround_weight
from twinquant_torch.framework import TorchFramework
from twinquant_torch.patches import Patches

SHORT = AdaParams(num_iteration=400)

torch.set_num_threads(1)  # threads that wait for each other take most of the time of small layers on a busy machine

LAYERS = {
    "linear": (lambda: nn.Linear(20, 6), (9, 20)),
    "linear on sequences": (lambda: nn.Linear(20, 6, bias=False), (3, 5, 20)),
    "conv1d, dilated": (lambda: nn.Conv1d(4, 6, 3, dilation=2, padding=2), (3, 4, 12)),
    "conv2d, strided and uneven": (lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0)), (3, 4, 9, 7)),
    "conv2d, grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (3, 4, 7, 7)),
    "conv2d, depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding="same"), (3, 4, 7, 7)),
    "conv2d, same with a dilated kernel": (
        lambda: nn.Conv2d(4, 6, (2, 3), dilation=(2, 1), padding="same"),
        (3, 4, 7, 7),
    ),
    "conv2d, one image without a batch": (lambda: nn.Conv2d(4, 6, 3), (4, 9, 9)),
    "conv3d": (lambda: nn.Conv3d(2, 4, (2, 3, 3), padding="valid"), (2, 2, 4, 5, 5)),
    "transposed conv1d": (lambda: nn.ConvTranspose1d(4, 6, 3, stride=2), (3, 4, 6)),
    "transposed conv2d": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1), (3, 4, 5, 6)),
    "transposed conv2d, grouped and dilated": (
        lambda: nn.ConvTranspose2d(4, 6, (2, 3), stride=(1, 3), dilation=(2, 1), groups=2),
        (3, 4, 5, 6),
    ),
}


def largest_scales(layer: nn.Module, num_bits: int) -> np.ndarray:
    """Per tensor: the largest magnitude becomes the largest integer."""
    return np.array([layer.weight.detach().abs().max() / (2 ** (num_bits - 1) - 1)], np.float32)


def correlated(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    """Return values that are all positive, as behind a ReLU: rounding errors of neighbours add up, or cancel."""
    return torch.from_numpy(np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype(np.float32))


def nearest(weight: torch.Tensor, scale: np.ndarray, num_bits: int) -> torch.Tensor:
    limit = 2 ** (num_bits - 1)
    integers = np.clip(np.rint(weight.detach().numpy() / scale), -limit, limit - 1)
    return torch.from_numpy((integers * scale).astype(np.float32))


def output_error(layer: nn.Module, weight: torch.Tensor, x: torch.Tensor) -> float:
    parameters = {**dict(layer.named_parameters()), "weight": weight}
    with torch.no_grad():
        return float((torch.func.functional_call(layer, parameters, x) - layer(x)).pow(2).mean())


@pytest.mark.parametrize("name", LAYERS)
def test_patches_times_weight_is_what_the_layer_computes(name):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer, x = make(), correlated(shape)
    with torch.no_grad():
        y = layer(x)
        patches = Patches.of(layer, layer.weight)
        inputs, outputs = patches.take(x, y, torch.arange(patches.positions(y)))
        matrix = patches.as_matrix(layer.weight)
        torch.testing.assert_close(inputs @ matrix.transpose(1, 2), outputs, atol=1e-5, rtol=1e-5)
        assert torch.equal(patches.as_weight(matrix), layer.weight)


@pytest.mark.parametrize("name", LAYERS)
def test_the_output_is_closer_than_with_nearest_rounding_on_data_it_did_not_see(name):
    make, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = make()
    scale = largest_scales(layer, 4)
    samples = [(x, layer(x).detach()) for x in (correlated(shape, seed) for seed in range(8))]
    weight = adaround_weight(layer, layer.weight, scale, 4, samples, SHORT)
    unseen = correlated(shape, seed=99)
    assert output_error(layer, weight, unseen) < output_error(layer, nearest(layer.weight, scale, 4), unseen)


@pytest.mark.parametrize("num_bits", [4, 6, 8])
@pytest.mark.parametrize("per_channel", [False, True])
def test_rounding_the_result_to_nearest_gives_its_integers_again(num_bits, per_channel):
    torch.manual_seed(0)
    layer = nn.ConvTranspose2d(4, 6, 3, groups=2)
    scale = largest_scales(layer, num_bits)
    if per_channel:
        by_channel = layer.weight.detach().reshape(2, 2, 3, 3, 3).abs().amax((1, 3, 4)).reshape(-1).numpy()
        scale = (by_channel / (2 ** (num_bits - 1) - 1)).astype(np.float32)
    x = correlated((2, 4, 6, 6))
    weight = adaround_weight(layer, layer.weight, scale, num_bits, [(x, layer(x).detach())], SHORT).numpy()
    spread = scale.reshape(1, -1, 1, 1) if scale.size == 1 else np.repeat(scale.reshape(2, 3), 2, 0)[..., None, None]
    integers = np.rint(weight / spread)
    limit = 2 ** (num_bits - 1)
    assert integers.min() >= -limit
    assert integers.max() <= limit - 1
    assert np.array_equal((integers.astype(np.int8) * spread).astype(np.float32), weight)
    # A weight goes up or down, never farther.
    exact = layer.weight.detach().numpy() / spread
    assert np.abs(integers - exact).max() <= 1.0001


def test_the_layer_and_the_random_numbers_of_the_caller_are_left_alone():
    torch.manual_seed(0)
    layer = nn.Linear(20, 6)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    state = torch.random.get_rng_state()
    x = correlated((64, 20))
    adaround_weight(layer, layer.weight, largest_scales(layer, 4), 4, [(x, layer(x).detach())], SHORT)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())
    assert layer.weight.grad is None
    assert torch.equal(torch.random.get_rng_state(), state)


def test_the_same_seed_gives_the_same_weight():
    torch.manual_seed(0)
    layer, x = nn.Linear(20, 6), correlated((64, 20))
    arguments = (layer, layer.weight, largest_scales(layer, 4), 4, [(x, layer(x).detach())], SHORT)
    first = adaround_weight(*arguments)
    torch.manual_seed(7)
    assert torch.equal(adaround_weight(*arguments), first)


def test_samples_taken_in_inference_mode_can_be_trained_on():
    torch.manual_seed(0)
    layer = nn.Linear(20, 6)
    with torch.inference_mode():
        x = correlated((64, 20)) * 1
        weight = adaround_weight(layer, layer.weight, largest_scales(layer, 4), 4, [(x, layer(x))], SHORT)
    assert not torch.equal(weight, nearest(layer.weight, largest_scales(layer, 4), 4))


def test_no_iterations_round_to_nearest():
    torch.manual_seed(0)
    layer, x = nn.Linear(20, 6), correlated((64, 20))
    scale = largest_scales(layer, 4)
    weight = adaround_weight(layer, layer.weight, scale, 4, [(x, layer(x).detach())], AdaParams(num_iteration=0))
    assert torch.equal(weight, nearest(layer.weight, scale, 4))


def test_it_trains_towards_the_float_output_of_the_float_input():
    # The quantized input is 10 % too large everywhere; the best rounding is then below the float weight.
    torch.manual_seed(0)
    layer, x = nn.Linear(40, 8, bias=False), correlated((256, 40))
    with torch.no_grad():
        layer.weight.abs_()
    scale = largest_scales(layer, 4)
    weight = adaround_weight(layer, layer.weight, scale, 4, [(x * 1.1, layer(x).detach())], SHORT)
    with torch.no_grad():
        target = layer(x)
        trained = (x * 1.1 @ weight.T - target).pow(2).mean()
        rounded = (x * 1.1 @ nearest(layer.weight, scale, 4).T - target).pow(2).mean()
    assert weight.mean() < layer.weight.mean()
    assert trained < 0.2 * rounded


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused(bad):
    layer, x = nn.Linear(20, 6), correlated((4, 20))
    weight = layer.weight.detach().clone()
    weight[0, 0] = bad
    with pytest.raises(ModelContentError, match="NaN or infinity"):
        adaround_weight(layer, weight, np.ones(1, np.float32), 4, [(x, layer(x).detach())], SHORT)


def test_samples_that_are_not_finite_are_refused():
    layer, x = nn.Linear(20, 6), correlated((4, 20))
    with pytest.raises(CalibrationError, match="NaN or infinite"):
        adaround_weight(layer, layer.weight, np.ones(1, np.float32), 4, [(x, layer(x).detach() / 0)], SHORT)


def test_no_samples_are_refused():
    layer = nn.Linear(20, 6)
    with pytest.raises(CalibrationError, match="no values"):
        adaround_weight(layer, layer.weight, np.ones(1, np.float32), 4, [], SHORT)


def test_other_layers_are_refused():
    layer = nn.Embedding(20, 6)
    with pytest.raises(UnsupportedModelError, match="not Embedding"):
        adaround_weight(layer, layer.weight, np.ones(1, np.float32), 4, [], SHORT)


class PartlyFunctional(nn.Module):
    """A layer that can be trained, and one that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.matrix = nn.Linear(4, 4), nn.Parameter(torch.ones(4, 4))

    def forward(self, x):
        return torch.relu(self.fc(x)) @ self.matrix


def test_a_setting_for_all_layers_leaves_out_those_that_cannot_be_trained_and_says_so(caplog):
    layers = TorchFramework().load(TorchModel(PartlyFunctional().eval(), torch.ones(2, 4))).layers
    (other,) = (layer.name for layer in layers if layer.op_type == "MatMul")
    config = create_config(layers, overrides={"weight_algorithm": "ada_quantize"})
    algorithms = {name: layer.weight.algorithm for name, layer in config.layers.items()}
    assert algorithms == {"fc": "ada_quantize", other: "arq_quantize"}
    (told,) = caplog.messages
    assert f"arq_quantize instead of ada_quantize: {other!r}: ada_quantize trains layers that are modules" in told
    with pytest.raises(ConfigError, match=f"layer '{other}': ada_quantize trains layers that are modules"):
        create_config(layers, overrides={"layers": {other: {"weight_algorithm": "ada_quantize"}}})


class Digits(nn.Module):
    """The trained digits network, its BatchNorms folded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, 3, padding=1)
        self.conv2_depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.conv2_pointwise = nn.Conv2d(16, 32, 1)
        self.conv3 = nn.Conv2d(32, 32, 3, padding=1, groups=4)
        self.fc1, self.fc2 = nn.Linear(128, 32), nn.Linear(32, 10)
        model = onnx.load(str(files("twinquant_onnx.demo") / "digits.onnx"))
        arrays = {tensor.name: numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer}
        self.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})

    def forward(self, x):
        x = torch.relu(self.conv2_depthwise(torch.relu(self.conv1(x))))
        x = nn.functional.avg_pool2d(self.conv2_pointwise(x), 2)
        x = nn.functional.avg_pool2d(torch.relu(self.conv3(x)), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))


def layer_io(model: nn.Module, name: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    seen: list[torch.Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(lambda _, inputs, output: seen.extend((*inputs, output)))
    with torch.no_grad():
        model(x)
    hook.remove()
    return seen[0], seen[1]


@pytest.mark.heavy
def test_digits_at_four_bits_are_read_better_than_with_nearest_rounding():
    stored = np.load(str(files("twinquant.digits") / "held_out_digits.npz"))
    images = torch.from_numpy(stored["images"].astype(np.float32) / 16).unsqueeze(1)
    labels = torch.from_numpy(stored["labels"].astype(np.int64))
    seen, unseen, answers = images[:128], images[128:], labels[128:]
    float_model, rounded, trained = Digits(), Digits(), Digits()
    for name, layer in Digits().named_children():
        weight = layer.weight.detach()
        by_channel = weight.abs().amax((1, 2, 3)) if weight.dim() == 4 else weight.abs().max().reshape(1)
        scale = (by_channel / 7).numpy()
        spread = scale.reshape(-1, *[1] * (weight.dim() - 1))
        samples = [(layer_io(trained, name, x)[0], layer_io(float_model, name, x)[1]) for x in seen.split(32)]
        params = AdaParams(num_iteration=500)
        with torch.no_grad():
            rounded.get_submodule(name).weight.copy_(nearest(weight, spread, 4))
            trained.get_submodule(name).weight.copy_(adaround_weight(layer, weight, scale, 4, samples, params))
    with torch.no_grad():
        scores = {"float": float_model(unseen), "nearest": rounded(unseen), "trained": trained(unseen)}
    error = {name: float((score - scores["float"]).pow(2).mean()) for name, score in scores.items()}
    right = {name: int((score.argmax(1) == answers).sum()) for name, score in scores.items()}
    assert error["trained"] < error["nearest"] / 4
    assert right["nearest"] < right["trained"]
    assert right["trained"] >= right["float"] - 2


@pytest.mark.heavy
def test_digits_through_the_whole_flow_at_four_bits_beat_nearest_rounding(tmp_path):
    stored = np.load(str(files("twinquant.digits") / "held_out_digits.npz"))
    images, labels = stored["images"].astype(np.float32)[:, None] / 16, stored["labels"]
    data = np.load(str(files("twinquant.digits") / "calibration_digits.npz"))["image"]
    batches = list(torch.from_numpy(data).split(32))
    net = Digits().eval()
    with torch.no_grad():
        exact = net(torch.from_numpy(images)).numpy()
    error, right = {}, {"float": int((exact.argmax(1) == labels).sum())}
    weighted = [name for name, _ in net.named_children()]
    for algorithm in ("arq_quantize", "ada_quantize"):
        settings = {"weight_algorithm": algorithm, **({"num_iteration": 1000} if algorithm == "ada_quantize" else {})}
        result = twinquant.quantize(
            net,
            batches,
            tmp_path / algorithm,
            config={"weight_bits": 4, "layers": dict.fromkeys(weighted, settings)},
            batch_num=len(batches),
            example_inputs=batches[0],
            dynamic_axes={"x": {0: "n"}},
        )
        assert twinquant.verify(result.output.fake_quant.model, result.output.deploy.model).agree
        session = onnxruntime.InferenceSession(str(result.output.fake_quant.model), providers=["CPUExecutionProvider"])
        (scores,) = session.run(None, {"x": images})
        error[algorithm] = float(np.square(scores - exact).mean())
        right[algorithm] = int((scores.argmax(1) == labels).sum())
    assert error["ada_quantize"] < error["arq_quantize"] / 2
    assert right["ada_quantize"] > right["arq_quantize"]
    assert right["ada_quantize"] >= right["float"] - 4
