"""Names of layers: paths of modules, and names for what is no module that depend on nothing far away."""

import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  torch may be absent
from torch.nn import functional as F  # noqa: E402  see above

import twinquant_torch.export  # noqa: E402  see above
from twinquant.registry import Tap  # noqa: E402  see above
from twinquant_torch import TorchModel  # noqa: E402  see above
from twinquant_torch.framework import TorchFramework  # noqa: E402  see above


@pytest.fixture
def older(monkeypatch):
    """The older exporter, which is all that torch 2.4 and 2.5 have."""
    monkeypatch.setattr(twinquant_torch.export, "_FIRST_DYNAMO", (99, 0))


def load(module, *inputs):
    torch.manual_seed(0)
    return TorchFramework().load(TorchModel(module.eval(), inputs))


def quantizable(graph):
    return [layer.name for layer in graph.layers if layer.kind is not None and layer.refusal is None]


def refused(graph):
    return {layer.name: layer.refusal for layer in graph.layers if layer.kind is not None and layer.refusal}


class Again(nn.Module):
    """Calls `conv` twice, and has a `conv_1`, which is what the older exporter calls the second call."""

    def __init__(self, order):
        super().__init__()
        self.conv, self.conv_1, self.order = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), order

    def forward(self, x):
        for name in self.order:
            x = torch.relu(getattr(self, name)(x))
        return x


@pytest.mark.parametrize("order", [("conv", "conv_1", "conv"), ("conv", "conv", "conv_1"), ("conv_1", "conv", "conv")])
def test_the_second_call_of_a_module_is_not_taken_for_another_module(older, order):
    graph = load(Again(order), torch.linspace(-1, 1, 18).reshape(1, 2, 3, 3))
    assert quantizable(graph) == ["conv_1"]
    assert len(refused(graph)) == 2 and all("used 2 times" in reason for reason in refused(graph).values())
    weights = graph.model.graph.model.graph
    (node,) = [node for node in weights.node if node.name == "conv_1"]
    assert node.input[1] == "conv_1.weight"


def test_the_second_call_of_a_container_is_not_taken_for_another_one(older):
    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.block_1 = (nn.Sequential(nn.Conv2d(2, 2, 1), nn.ReLU()) for _ in range(2))

        def forward(self, x):
            return self.block(self.block_1(self.block(x)))

    graph = load(Blocks(), torch.linspace(-1, 1, 18).reshape(1, 2, 3, 3))
    assert quantizable(graph) == ["block_1.0"]


def test_layers_without_weights_that_cannot_be_told_apart_are_refused(older):
    class Pools(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool, self.pool_1 = nn.Conv2d(2, 2, 1), nn.AvgPool2d(1), nn.AvgPool2d(1)

        def forward(self, x):
            return self.pool(self.pool_1(self.pool(self.conv(x))))

    graph = load(Pools(), torch.linspace(-1, 1, 18).reshape(1, 2, 3, 3))
    assert quantizable(graph) == ["conv"]
    assert any("may belong to 'pool_1' or to 'pool'" in reason for reason in refused(graph).values())


def test_a_module_with_a_number_at_its_end_is_itself_where_nothing_is_called_twice(older):
    graph = load(Again(("conv_1", "conv")), torch.linspace(-1, 1, 18).reshape(1, 2, 3, 3))
    assert quantizable(graph) == ["conv_1", "conv"]


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return F.linear(torch.relu(F.linear(x, self.weight)), self.weight)


class Outer(nn.Module):
    """`inner` computes two functional layers; `before` may add another one in front of it."""

    def __init__(self, before):
        super().__init__()
        self.before, self.inner = nn.Parameter(torch.randn(4, 4)) if before else None, Inner()

    def forward(self, x):
        return self.inner(x if self.before is None else F.linear(x, self.before))


def test_names_of_functional_layers_do_not_depend_on_other_parts_of_the_model():
    if not any(name == "dynamo" for name, _ in twinquant_torch.export._exporters(nn.Identity())):
        pytest.skip("the older exporter gives functional layers other names")
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    assert quantizable(load(Outer(False), x)) == ["inner.linear", "inner.linear_1"]
    assert quantizable(load(Outer(True), x)) == ["linear", "inner.linear", "inner.linear_1"]


def test_a_module_keeps_its_path_where_a_functional_layer_has_the_same_name():
    class Taken(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.linear = nn.Parameter(torch.randn(4, 4)), nn.Linear(4, 4)

        def forward(self, x):
            return self.linear(torch.relu(F.linear(x, self.weight)))

    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    graph = load(Taken(), x)
    assert graph.named.modules == {"linear": "linear"}
    values = dict(TorchFramework().activations(graph, [Tap("linear")])({"x": x.numpy()}))
    assert values[Tap("linear")][0].min() >= 0
