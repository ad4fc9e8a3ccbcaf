"""What is exported: names, axes, precision, refusals; with either of torch's exporters."""

import logging
import os
import sys
import threading
import warnings

import numpy as np
import onnx
import pytest

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  torch may be absent
from torch.nn import functional as F  # noqa: E402  see above

import twinquant_torch.export  # noqa: E402  see above
from twinquant.errors import ArgumentError, DataError, UnsupportedModelError  # noqa: E402  see above
from twinquant.registry import Tap  # noqa: E402  see above
from twinquant_torch import TorchModel  # noqa: E402  see above
from twinquant_torch.framework import TorchFramework  # noqa: E402  see above
from twinquant_torch.quiet import quiet  # noqa: E402  see above


def has_dynamo():
    """Tell whether this torch has a dynamo exporter that the plugin uses."""
    return any(name == "dynamo" for name, _ in twinquant_torch.export._exporters(nn.Identity()))


@pytest.fixture(params=["dynamo", "TorchScript"])
def exporter(request, monkeypatch):
    """Which of the two exporters works."""
    if request.param == "TorchScript":
        monkeypatch.setattr(twinquant_torch.export, "_FIRST_DYNAMO", (99, 0))
    elif not has_dynamo():
        pytest.skip("this torch has no dynamo exporter")
    return request.param


def load(module, inputs, **options):
    torch.manual_seed(5)
    return TorchFramework().load(TorchModel(module.eval(), inputs, **options))


def quantizable(graph):
    return {layer.name: layer.op_type for layer in graph.layers if layer.kind is not None and layer.refusal is None}


def refused(graph):
    return {layer.name: layer.refusal for layer in graph.layers if layer.refusal is not None}


def written(graph, folder):
    return TorchFramework().write_float(graph, folder, "model.onnx")[0]


class Everything(nn.Module):
    """A layer of every kind."""

    def __init__(self):
        super().__init__()
        self.conv = nn.ModuleDict({"one": nn.Conv1d(4, 4, 3), "two": nn.Conv2d(2, 4, 3), "three": nn.Conv3d(1, 2, 3)})
        self.up = nn.Sequential(nn.ConvTranspose1d(4, 4, 2), nn.ConvTranspose2d(4, 4, 2), nn.ConvTranspose3d(2, 2, 2))
        self.pool = nn.AvgPool2d(2)
        self.flat, self.deep = nn.Linear(4, 3), nn.Linear(4, 3)
        self.lstm, self.gru = nn.LSTM(3, 4), nn.GRU(4, 4, batch_first=True)

    def forward(self, x, h, c):
        image = self.pool(self.up[1](self.conv["two"](x)))  # (2, 4, 3, 3)
        volume = self.up[2](self.conv["three"](x[:, :1, None].expand(-1, -1, 3, -1, -1)))
        rows = self.up[0](self.conv["one"](image.flatten(2)))  # (2, 4, 8)
        steps, _ = self.lstm(self.deep(rows.transpose(1, 2)).transpose(0, 1), (h, c))
        steps, _ = self.gru(steps.transpose(0, 1), h)
        return self.flat(image.mean((2, 3))), volume, steps


EVERYTHING = {
    "conv.one": "Conv",
    "conv.two": "Conv",
    "conv.three": "Conv",
    "up.0": "ConvTranspose",
    "up.1": "ConvTranspose",
    "up.2": "ConvTranspose",
    "pool": "AveragePool",
    "flat": "Gemm",
    "deep": "MatMul",
    "lstm": "LSTM",
    "gru": "GRU",
}


@pytest.mark.parametrize("open_batch", [False, True])
def test_every_kind_of_module_is_a_layer_with_its_path_and_the_graph_equals_the_module(
    exporter, open_batch, run, tmp_path
):
    torch.manual_seed(6)
    net = Everything().eval()
    inputs = (torch.randn(2, 2, 8, 8), torch.randn(1, 2, 4), torch.randn(1, 2, 4))
    axes = {"x": {0: "n"}, "h": {1: "n"}, "c": {1: "n"}} if open_batch else None
    graph = load(net, inputs, input_names=["x", "h", "c"], dynamic_axes=axes)
    assert quantizable(graph) == EVERYTHING
    path = written(graph, tmp_path)
    onnx.checker.check_model(path, full_check=True)
    if open_batch:
        inputs = (torch.randn(5, 2, 8, 8), torch.randn(1, 5, 4), torch.randn(1, 5, 4))
    with torch.no_grad():
        expected = net(*inputs)
    for found, exact in zip(run(path, *inputs), expected, strict=True):
        np.testing.assert_allclose(found, exact.numpy(), atol=1e-4)


def test_hooks_see_what_the_graph_computes(exporter, tmp_path):
    torch.manual_seed(6)
    inputs = (torch.randn(2, 2, 8, 8), torch.randn(1, 2, 4), torch.randn(1, 2, 4))
    graph = load(Everything(), inputs)
    taps = [Tap(name) for name in EVERYTHING] + [Tap("lstm", hidden=True), Tap("gru", hidden=True)]
    feeds = {
        value.name: tensor.numpy() for value, tensor in zip(TorchFramework().model_inputs(graph), inputs, strict=True)
    }
    by_hooks = TorchFramework().activations(graph, taps)(feeds)
    in_graph = TorchFramework().activations(TorchFramework().load(written(graph, tmp_path)), taps)(feeds)
    for (tap, seen), (_, computed) in zip(by_hooks, in_graph, strict=True):
        seen, computed = (np.sort(np.concatenate([a.ravel() for a in arrays])) for arrays in (seen, computed))
        np.testing.assert_allclose(seen, computed, atol=1e-5, err_msg=str(tap))


class Functional(nn.Module):
    """Layers that are no modules, or whose modules are not called."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.kernel = nn.Parameter(torch.randn(3, 2, 3, 3))
        self.inner = nn.Linear(3, 4)

    def forward(self, x):
        x = F.conv2d(x, self.kernel).flatten(2).transpose(1, 2)
        x = F.linear(x, self.inner.weight, self.inner.bias)
        x = F.linear(x @ self.weight, self.weight)
        return x @ x.transpose(1, 2)


def test_functional_layers_with_constant_weights_are_quantized_and_the_others_reported(exporter, run, tmp_path):
    torch.manual_seed(6)
    net, x = Functional(), torch.randn(1, 2, 5, 5)
    graph = load(net, x)
    assert list(quantizable(graph).values()) == ["Conv", "MatMul", "MatMul", "MatMul"]
    if exporter == "dynamo":  # the older one renames weights that it transposes
        assert "inner" in quantizable(graph)
    (reason,) = refused(graph).values()
    assert "not constant" in reason
    np.testing.assert_allclose(run(written(graph, tmp_path), x)[0], net(x).detach().numpy(), rtol=1e-4, atol=1e-4)
    taps = [Tap(name) for name in quantizable(graph)]
    (name,) = (value.name for value in TorchFramework().model_inputs(graph))
    values = dict(TorchFramework().activations(graph, taps)({name: x.numpy()}))
    np.testing.assert_array_equal(values[taps[0]][0], x.numpy())


class Shared(nn.Module):
    """One module that is used twice, one that has two names, and one for itself."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Linear(4, 4)
        self.first = nn.Linear(4, 4)
        self.second = self.first
        self.own = nn.Linear(4, 4)

    def forward(self, x):
        return self.own(self.second(self.first(self.twice(F.relu(self.twice(x))))))


def test_modules_that_are_used_twice_are_reported_with_the_way_out(exporter):
    graph = load(Shared(), torch.randn(2, 4))
    assert list(quantizable(graph)) == ["own"]
    assert len(refused(graph)) == 4
    assert all("used 2 times" in reason and "make a module for each" in reason for reason in refused(graph).values())


@pytest.mark.parametrize(
    ("options", "reason"),
    [({"num_layers": 2}, "2 layers"), ({"bidirectional": True}, "bidirectional")],
)
def test_recurrent_modules_that_the_device_lacks_are_reported(exporter, options, reason):
    count = 2
    graph = load(nn.LSTM(3, 4, **options), (torch.randn(5, 1, 3), tuple(torch.randn(count, 1, 4) for _ in range(2))))
    assert quantizable(graph) == {}
    assert any(reason in text for text in refused(graph).values())


def test_normalization_is_not_folded_by_the_exporter(exporter, small_net, batches):
    graph = load(small_net, batches[0])
    operators = [node.op_type for node in graph.model.graph.model.graph.node]
    assert operators.count("BatchNormalization") == 2
    _, folded = TorchFramework().fuse(graph, ["layer1.1.conv1"])
    assert list(folded) == ["layer1.0.conv1"]


def test_the_exported_file_tells_nothing_about_this_machine(exporter, small_net, batches, tmp_path):
    content = written(load(small_net, batches[0]), tmp_path).read_bytes()
    assert b"site-packages" not in content and b"conftest" not in content and b"stack_trace" not in content


def test_keyword_arguments_are_exported_and_run(exporter, run, tmp_path):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, *, x, factor=None, flag=True):
            return self.fc(input=x) * factor if flag else x

    net, x, factor = Scaled(), torch.randn(3, 4), torch.tensor(2.0)
    graph = load(net, {"x": x, "factor": factor})
    np.testing.assert_allclose(
        run(written(graph, tmp_path), x, factor)[0], net(x=x, factor=factor).detach().numpy(), atol=1e-5
    )
    values = dict(TorchFramework().activations(graph, [Tap("fc")])({"x": x.numpy(), "factor": factor.numpy()}))
    np.testing.assert_array_equal(values[Tap("fc")][0], x.numpy())


def test_an_input_that_nobody_reads_does_not_matter(exporter):
    class Half(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x, ignored):
            return self.fc(x)

    x = torch.randn(3, 4)
    graph = load(Half(), (x, torch.randn(3, 7)))
    feeds = {
        value.name: np.ones((3, 4 if value.name == "x" else 7), np.float32)
        for value in TorchFramework().model_inputs(graph)
    }
    values = dict(TorchFramework().activations(graph, [Tap("fc")])(feeds))
    np.testing.assert_array_equal(values[Tap("fc")][0], np.ones((3, 4)))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return self.fc(x) if x.sum() > 0 else x


def test_a_module_that_branches_on_values_is_refused_with_the_reason_and_advice(exporter, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        UnsupportedModelError, match=rf"cannot be exported\. {exporter} exporter: .*branch|boolean"
    ) as caught:
        load(Branching(), torch.randn(2, 4))
    assert "must not branch on values of tensors" in str(caught.value)
    assert len(str(caught.value)) < 1500
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        (lambda: torch.randn(2, 3), {}, DataError, "does not run on them: .*shapes"),
        (lambda: (torch.randn(2, 4),) * 2, {}, DataError, "too many positional"),
        (lambda: "image", {}, ArgumentError, "must be a tensor, a tuple.*got str"),
        (lambda: torch.randn(2, 4, device="meta"), {}, DataError, r"on meta, the model is on cpu; move them"),
        (lambda: torch.randn(2, 4), {"input_names": ["a", "b"]}, ArgumentError, "input_names: there are 2"),
        (lambda: torch.randn(2, 4), {"dynamic_axes": {"y": {0: "n"}}}, ArgumentError, "no input or output 'y'"),
        (lambda: torch.randn(2, 4), {"opset": 11}, ArgumentError, "opset: must be 17 or newer, got 11"),
        (
            lambda: torch.randn(2, 4),
            {"output_names": ["a", "b"]},
            ArgumentError,
            r"output_names: there are 2 .*1 output",
        ),
        (
            lambda: torch.randn(2, 4),
            {"input_names": ["a"], "output_names": ["a"]},
            ArgumentError,
            "'a' is there 2 times",
        ),
        (lambda: torch.randn(2, 4), {"input_names": "a"}, ArgumentError, r"got the text 'a'; write \['a'\]"),
        (lambda: torch.randn(2, 4), {"input_names": ["weight"]}, ArgumentError, "'weight' is the name of a weight"),
        (lambda: torch.randn(2, 4), {"dynamic_axes": {"input": {2: "n"}}}, ArgumentError, "2 axes.*no axis 2"),
        (lambda: torch.randn(2, 4), {"dynamic_axes": {"input": {-1: "n"}}}, ArgumentError, "no axis -1"),
        (lambda: torch.randn(2, 4), {"dynamic_axes": {"input": {0: "my n"}}}, ArgumentError, "cannot be called 'my n'"),
    ],
    ids=[
        "shape",
        "arity",
        "type",
        "device",
        "names",
        "axes",
        "opset",
        *["outputs", "twice", "text", "taken", "high", "low", "label"],
    ],
)
def test_wrong_example_inputs_and_options_are_named(inputs, options, error, message):
    with pytest.raises(error, match=message):
        load(nn.Linear(4, 4), inputs(), **options)


def test_big_weights_of_the_older_exporter_live_as_long_as_the_graph(monkeypatch, batches, small_net, tmp_path):
    monkeypatch.setattr(twinquant_torch.export, "_FIRST_DYNAMO", (99, 0))
    graph = load(small_net, batches[0])
    folder = graph.folder.path
    assert folder.is_dir()
    derived = TorchFramework().fuse(graph, ())[0]
    del graph
    assert folder.is_dir()
    written(derived, tmp_path)
    del derived
    assert not folder.exists()


def test_a_length_that_the_exporter_keeps_is_found_and_named():
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTMCell(3, 4)

        def forward(self, x):
            state = x.new_zeros(x.shape[0], 4), x.new_zeros(x.shape[0], 4)
            for step in range(x.shape[1]):
                state = self.cell(x[:, step], state)
            return state[0]

    with pytest.raises(
        UnsupportedModelError, match=r"any length of axis 1 of 'x' \('t'\): with another one, it"
    ) as caught:
        load(Unrolled(), torch.randn(2, 3, 3), dynamic_axes={"x": {0: "n", 1: "t"}})
    assert "Leave the axis out of dynamic_axes" in str(caught.value)
    assert not has_dynamo() or "You marked t as dynamic but your code specialized it" in str(caught.value)


def test_an_operator_that_onnx_has_not_is_called_so(capfd):
    class Pooled(nn.Module):
        def forward(self, x):
            return F.adaptive_max_pool2d(x, (3, 4))

    with pytest.raises(UnsupportedModelError, match=r"adaptive_max_pool2d.*ONNX has no counterpart") as caught:
        load(Pooled(), torch.randn(1, 2, 8, 9))
    text = str(caught.value)
    assert not any(noise in text for noise in ("branch", "http", "Caused by", "\x1b", "pull request"))
    assert capfd.readouterr() == ("", "")


def test_a_check_of_shapes_is_no_branch_on_values(exporter):
    class Checking(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            if x.shape[1] != 4:
                raise ValueError("four, please")
            return self.fc(x)

    assert list(quantizable(load(Checking(), torch.randn(2, 4)))) == ["fc"]


def test_only_what_the_exporters_write_is_kept_from_the_terminal(capfd, caplog):
    def somebody_else():
        print("our own")
        print("our own, too", file=sys.stderr)
        logging.getLogger("torch.elsewhere").error("our own record")
        warnings.warn("our own warning", UserWarning, stacklevel=1)

    with pytest.warns(UserWarning, match="our own warning") as shown, quiet([], descriptors=True):
        thread = threading.Thread(target=somebody_else)
        thread.start()
        print("from Python")
        logging.getLogger("onnxscript.optimizer").warning("from a logger")
        warnings.warn("from a warning", UserWarning, stacklevel=1)
        os.write(2, b"[W1128 23:00:00.1 shape.cpp:5] Warning: from C++ (function f)\n")
        os.write(1, b"Torch IR graph at exception: graph(%x : Tensor):\n  %y = f(%x)\n  return (%y)\n\n")
        os.write(1, b"and ours\n")
        thread.join()
    assert [str(warning.message) for warning in shown] == ["our own warning"]
    assert caplog.messages == ["our own record"]
    print("the end")
    output, errors = capfd.readouterr()
    assert sorted(output.splitlines()) == ["and ours", "our own", "the end"]
    assert errors == "our own, too\n"


def test_the_fallback_to_the_older_exporter_is_logged_with_the_reason(monkeypatch, caplog):
    if not has_dynamo():
        pytest.skip("this torch has no dynamo exporter")

    def fail(_):
        raise ValueError("no such operator")

    monkeypatch.setattr(twinquant_torch.export, "_export_dynamo", fail)
    with caplog.at_level("INFO", logger="twinquant_torch"):
        load(nn.Linear(4, 4), torch.randn(2, 4))
    assert any("TorchScript exporter. dynamo exporter: no such operator" in line for line in caplog.messages)


def test_batch_axes_of_a_keyword_argument_keep_their_names_in_any_order(exporter):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, *, x, mask):
            return self.fc(x) * mask

    inputs = {"mask": torch.ones(3, 2), "x": torch.randn(3, 4)}
    graph = load(Masked(), inputs, dynamic_axes={"x": {0: "n"}, "mask": {0: "n"}})
    shapes = {value.name: value.shape for value in TorchFramework().model_inputs(graph)}
    assert {name: shape[1] for name, shape in shapes.items()} == {"mask": 2, "x": 4}


def test_an_operator_set_that_no_exporter_gives_is_refused():
    with pytest.raises(ArgumentError, match=r"opset: torch .* cannot export this model with operator set 99"):
        load(nn.Linear(4, 4), torch.randn(2, 4), opset=99)


def test_the_operator_set_that_is_asked_for_is_the_one_that_is_given():
    graph = load(nn.Linear(4, 4), torch.randn(2, 4), opset=17)
    assert [entry.version for entry in graph.model.graph.model.opset_import if not entry.domain] == [17]
