"""Networks as people build them go through the whole flow: the right layers are quantized, and the twins agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  torch may be absent
from torch.nn import functional as F  # noqa: E402  see above
from torch.utils import _pytree as pytree  # noqa: E402  see above

import twinquant  # noqa: E402  see above
from twinquant.errors import DataError, UnsupportedModelError  # noqa: E402  see above
from twinquant.registry import select_framework  # noqa: E402  see above
from twinquant_torch import TorchModel  # noqa: E402  see above
from twinquant_torch.export import _exporters as exporters_for  # noqa: E402  see above

Inputs = tuple["torch.Tensor", ...]


def normed(channels: int, filters: int, kernel: int = 3, stride: int = 1, groups: int = 1, act=nn.ReLU) -> nn.Module:
    layer = nn.Conv2d(channels, filters, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(filters), act())


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.conv, self.norm = normed(3, 8), nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.short, self.long = nn.Conv2d(8, 16, 1, 2), nn.Conv2d(8, 16, 3, 2, 1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x):
        x = self.stem(x)
        x = F.relu(x + self.norm(self.conv(x)))
        return self.fc(F.adaptive_avg_pool2d(F.relu(self.short(x) + self.long(x)), 1).flatten(1))


class InvertedResidual(nn.Module):
    def __init__(self, channels):
        super().__init__()
        wide = 4 * channels
        self.conv = nn.Sequential(
            *normed(channels, wide, 1, act=nn.ReLU6),
            *normed(wide, wide, 3, groups=wide, act=nn.ReLU6),
            *(nn.Conv2d(wide, channels, 1, bias=False), nn.BatchNorm2d(channels)),
        )

    def forward(self, x):
        return x + self.conv(x)


class MobileNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(normed(3, 8, 3, 2, act=nn.Hardswish), InvertedResidual(8))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(8, 7))

    def forward(self, x):
        return self.classifier(self.features(x).mean([2, 3]))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down1, self.down2, self.pool = normed(3, 8), normed(8, 16), nn.MaxPool2d(2)
        self.up, self.norm, self.merge = nn.ConvTranspose2d(16, 8, 2, 2), nn.BatchNorm2d(8), normed(16, 8)
        self.up2, self.out = nn.ConvTranspose2d(8, 8, 3, 2, 1, 1, groups=2), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        skip = self.down1(x)
        x = self.norm(self.up(self.down2(self.pool(skip))))
        return self.out(self.up2(self.merge(torch.cat([skip, x], 1))))


class DenseNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 4, 3, padding=1)) for width in (6, 10)
        )
        self.pool, self.fc = nn.AvgPool2d(2), nn.Linear(14, 3)

    def forward(self, x):
        x = self.first(x)
        for block in self.blocks:
            x = torch.cat([x, block(x)], 1)
        return self.fc(self.pool(x).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self, width=16, heads=4):
        super().__init__()
        self.heads, self.qkv, self.proj = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    def __init__(self, width=16):
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(width), Attention(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch, self.blocks, self.head = nn.Conv2d(3, 16, 4, 4), nn.Sequential(TransformerBlock()), nn.Linear(16, 5)
        self.token, self.places = nn.Parameter(torch.randn(1, 1, 16)), nn.Parameter(torch.randn(1, 17, 16))

    def forward(self, x):
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.places
        return self.head(self.blocks(x)[:, 0])


class Bert(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.block, self.pooler = nn.Embedding(50, 16), TransformerBlock(), nn.Linear(16, 16)

    def forward(self, tokens, mask):
        x = self.block(self.words(tokens) * mask.unsqueeze(-1))
        return x, torch.tanh(self.pooler(x[:, 0]))


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x, memory):
        return self.layer(x, memory)


class Audio(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv1d(1, 8, 9, 4, 4), nn.BatchNorm1d(8), nn.ReLU()),
            *(nn.Conv1d(8, 8, 5, padding=4, dilation=2, groups=8), nn.Conv1d(8, 12, 1)),
        )
        self.up, self.fc = nn.ConvTranspose1d(12, 4, 4, 2, 1), nn.Linear(4, 2)

    def forward(self, x):
        return self.fc(self.up(self.net(x)).mean(-1))


class Volume(nn.Module):
    def __init__(self):
        super().__init__()
        # onnxscript makes a bias of a wrong shape for a Conv3d without one.
        self.conv, self.norm = nn.Conv3d(1, 4, 3, padding=1, bias=False), nn.BatchNorm3d(4)
        self.deep, self.up = nn.Conv3d(4, 6, 3), nn.ConvTranspose3d(6, 2, 2, 2)

    def forward(self, x):
        return self.up(F.relu(self.deep(F.relu(self.norm(self.conv(x))))))


class Recurrent(nn.Module):
    def __init__(self, kind, **options):
        super().__init__()
        self.rnn = getattr(nn, kind)(8, 12, **options)
        self.fc = nn.Linear(12 * (2 if options.get("bidirectional") else 1), 4)

    def forward(self, x, state):
        y, _ = self.rnn(x, (state, state) if isinstance(self.rnn, nn.LSTM) else state)
        return self.fc(y)


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.down = normed(3, 8, act=nn.SiLU), normed(8, 8, 3, 2, act=nn.SiLU)
        self.heads = nn.ModuleDict({"box": nn.Conv2d(8, 4, 1), "class": nn.Conv2d(8, 3, 1)})
        self.lateral = nn.Conv2d(8, 8, 1)

    def forward(self, x):
        fine = self.stem(x)
        coarse = self.down(fine)
        merged = fine + F.interpolate(self.lateral(coarse), scale_factor=2)
        return {"boxes": self.heads["box"](merged), "classes": (self.heads["class"](coarse), coarse)}


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.image, self.numbers, self.out = nn.Conv2d(3, 4, 3), nn.Linear(5, 4), nn.Linear(4, 2)

    def forward(self, image, numbers):
        return self.out(F.relu(self.image(image).mean((2, 3)) + self.numbers(numbers)))


class UsedTwice(nn.Module):
    def __init__(self):
        super().__init__()
        self.twice, self.once = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.once(torch.relu(self.twice(torch.relu(self.twice(x)))))


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.kernel, self.bias = nn.Parameter(torch.randn(6, 3, 3, 3) / 5), nn.Parameter(torch.randn(6))
        self.rows, self.matrix = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(4, 5))

    def forward(self, x):
        x = F.relu(F.conv2d(x, self.kernel, self.bias, padding=1)).mean((2, 3))
        return F.relu(F.linear(x, self.rows)) @ self.matrix


def images(size=16) -> Inputs:
    return (torch.randn(2, 3, size, size),)


def sequences() -> Inputs:
    return torch.randn(5, 1, 8), torch.zeros(1, 1, 12)


@dataclass
class Case:
    """A network, its inputs, the layers that are quantized, and those that are refused."""

    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    quantized: str
    refused: str = ""


CASES = {
    "ResNet": Case(ResNet, images, "stem.0 conv short long fc"),
    "MobileNet": Case(
        MobileNet, images, "features.0.0 features.1.conv.0 features.1.conv.3 features.1.conv.6 classifier.1"
    ),
    "U-Net": Case(UNet, images, "down1.0 down2.0 up merge.0 up2 out"),
    "DenseNet": Case(DenseNet, images, "first blocks.0.2 blocks.1.2 pool fc"),
    "vision transformer": Case(
        VisionTransformer,
        images,
        "patch blocks.0.attention.qkv blocks.0.attention.proj blocks.0.mlp.0 blocks.0.mlp.2 head",
        "blocks.0.attention.scaled_dot_product_attention",
    ),
    "BERT": Case(
        Bert,
        lambda: (torch.randint(0, 50, (2, 7)), torch.ones(2, 7)),
        "block.attention.qkv block.attention.proj block.mlp.0 block.mlp.2 pooler",
        "block.attention.scaled_dot_product_attention",
    ),
    "decoder with cross-attention": Case(
        Decoder,
        lambda: (torch.randn(2, 5, 8), torch.randn(2, 4, 8)),
        # The weights of queries, and of keys and values, are parts of one parameter.
        "layer.self_attn.linear layer.self_attn.out_proj layer.multihead_attn.linear layer.multihead_attn.linear_1 "
        "layer.multihead_attn.out_proj layer.linear1 layer.linear2",
        "layer.self_attn.scaled_dot_product_attention",
    ),
    "audio, Conv1d": Case(Audio, lambda: (torch.randn(2, 1, 64),), "net.0 net.3 net.4 up fc"),
    "volumes, Conv3d": Case(Volume, lambda: (torch.randn(2, 1, 8, 8, 8),), "conv deep up"),
    "LSTM": Case(lambda: Recurrent("LSTM"), sequences, "rnn fc"),
    "GRU": Case(lambda: Recurrent("GRU"), sequences, "rnn fc"),
    "bidirectional LSTM": Case(
        lambda: Recurrent("LSTM", bidirectional=True),
        lambda: (torch.randn(5, 1, 8), torch.zeros(2, 1, 12)),
        "fc",
        "rnn",
    ),
    "detector with nested outputs": Case(Detector, images, "stem.0 down.0 lateral heads.box heads.class"),
    "two inputs": Case(TwoInputs, lambda: (torch.randn(2, 3, 8, 8), torch.randn(2, 5)), "image numbers out"),
    "a module used twice": Case(UsedTwice, lambda: (torch.randn(4, 8),), "once", "twice"),
    "functional layers": Case(Functional, lambda: images(8), "conv2d linear matmul"),
}


def made(case: Case) -> tuple[nn.Module, Inputs]:
    """Return a module with random weights and statistics, and its inputs."""
    torch.manual_seed(1)
    module = case.build()
    for norm in module.modules():
        if isinstance(norm, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
    return module.eval(), case.inputs()


NEEDS_DYNAMO = {"vision transformer", "BERT", "decoder with cross-attention", "functional layers"}
"""The older exporter, which is all that old releases of torch have, gives functional layers other names."""

with_dynamo = pytest.mark.skipif(
    not any(name == "dynamo" for name, _ in exporters_for(nn.Identity())), reason="this torch has no dynamo exporter"
)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=with_dynamo if name in NEEDS_DYNAMO else ()) for name in CASES]
)
def test_a_network_becomes_twins_that_agree_with_it_and_each_other(name, tmp_path, run):
    case = CASES[name]
    module, inputs = made(case)
    framework = select_framework(TorchModel(module, inputs))
    graph = framework.load(TorchModel(module, inputs))
    names = [value.name for value in framework.model_inputs(graph)]
    batch = dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True))
    result = twinquant.quantize(module, [batch], tmp_path / "net", batch_num=1, example_inputs=inputs)
    assert sorted(record.key for record in result.records) == sorted(case.quantized.split())
    refused = [layer.name for layer in graph.layers if layer.kind and layer.refusal]
    assert all(any(layer.startswith(start) for layer in refused) for start in case.refused.split())

    fake_quant, deploy = tmp_path / "net_fake_quant_model.onnx", tmp_path / "net_deploy_model.onnx"
    report = framework.verify(fake_quant, deploy, batch)
    assert not report.problems
    assert all(verdict.agree for verdict in (*report.layers, *report.outputs))

    with torch.no_grad():
        expected = [leaf.numpy() for leaf in pytree.tree_leaves(module(*inputs))]
    outputs = run(fake_quant, *inputs)
    assert len(outputs) == len(expected)
    for output, wanted in zip(outputs, expected, strict=True):
        # 8 bits leave an error of about a hundredth of the range.
        np.testing.assert_allclose(output, wanted, rtol=0, atol=0.04 * np.abs(wanted).max())


def test_an_axis_of_a_recurrent_network_can_have_any_length(tmp_path, run):
    # The dynamo exporter traces the sequence with the length of the example.
    torch.manual_seed(1)
    module = Recurrent("LSTM").eval()
    inputs, axes = (torch.randn(5, 2, 8), torch.zeros(1, 2, 12)), {"x": {0: "time"}}
    longer = (torch.randn(9, 2, 8), torch.zeros(1, 2, 12))
    batch = {"x": longer[0].numpy(), "state": longer[1].numpy()}
    options = {"example_inputs": inputs, "dynamic_axes": axes}
    twinquant.quantize(module, [batch], tmp_path / "net", batch_num=1, **options)
    with torch.no_grad():
        expected = module(*longer).numpy()
    (output,) = run(tmp_path / "net_fake_quant_model.onnx", *longer)
    np.testing.assert_allclose(output, expected, rtol=0, atol=0.04 * np.abs(expected).max())


@with_dynamo
def test_a_branch_on_values_is_refused_instead_of_lost(tmp_path):
    class Branching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x) if x.sum() > 0 else -self.layer(x)

    x = torch.randn(2, 4)
    with pytest.raises(UnsupportedModelError, match=r"data-dependent.*must not branch on values of tensors"):
        twinquant.quantize(Branching().eval(), [x.numpy()], tmp_path / "net", batch_num=1, example_inputs=x)


class TakesDict(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, batch):
        return self.layer(batch["x"]) + batch["y"]


@with_dynamo
def test_a_forward_that_takes_a_dict_has_its_members_as_inputs(tmp_path):
    inputs = ({"x": torch.randn(2, 4), "y": torch.randn(2, 3)},)
    numbers = np.arange(8, dtype=np.float32)
    batch = {"batch_x": numbers.reshape(2, 4), "batch_y": np.ones((2, 3), np.float32)}
    result = twinquant.quantize(TakesDict().eval(), [batch], tmp_path / "net", batch_num=1, example_inputs=inputs)
    assert [record.key for record in result.records] == ["layer"]


def test_a_dict_that_does_not_fit_the_arguments_is_explained(tmp_path):
    inputs = {"x": torch.randn(2, 4), "y": torch.randn(2, 3)}
    with pytest.raises(DataError, match=r"forward takes \(batch\).*a dict that is one argument goes into a tuple"):
        twinquant.quantize(TakesDict().eval(), [inputs], tmp_path / "net", batch_num=1, example_inputs=inputs)


def test_a_torchscript_module_is_refused(tmp_path):
    x = torch.randn(2, 4)
    module = torch.jit.ScriptModule()
    with pytest.raises(UnsupportedModelError, match=r"pass the torch\.nn\.Module that was scripted or traced"):
        twinquant.quantize(module.eval(), [x.numpy()], tmp_path / "net", batch_num=1, example_inputs=x)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # torch's own, about what is used here
def test_modules_inside_that_cannot_be_exported_are_named(tmp_path):
    x = torch.randn(2, 4)
    scripted = nn.Sequential(nn.Linear(4, 4), torch.jit.ScriptModule().eval())
    quantized = nn.Sequential(nn.Linear(4, 4), torch.ao.nn.quantized.dynamic.Linear(4, 4))
    projected = nn.Sequential(nn.LSTM(4, 4, proj_size=2))
    for module, message in (
        (scripted, r"module '1' of the model is a TorchScript module"),
        (quantized, r"module '1' of the model \(Linear\) is quantized already.*pass the float model"),
        (projected, r"module '0' of the model \(LSTM\) has proj_size=2"),
    ):
        with pytest.raises(UnsupportedModelError, match=message):
            twinquant.quantize(module.eval(), [x], tmp_path / "net", batch_num=1, example_inputs=x)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # torch.compile itself
def test_a_compiled_module_has_the_layers_of_the_module_in_it(tmp_path):
    x = torch.randn(2, 4)
    module = torch.compile(nn.Sequential(nn.Linear(4, 3)).eval())
    result = twinquant.quantize(module, [x.numpy()], tmp_path / "net", batch_num=1, example_inputs=x)
    assert [record.key for record in result.records] == ["0"]
