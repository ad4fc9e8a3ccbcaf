"""Batches as users have them: of any size, nested as forward takes them, with labels, of any data loader."""

import json
from collections import UserDict
from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import twinquant
import twinquant_torch.amct as amct
from twinquant.errors import ArgumentError, CalibrationError, DataError, UnsupportedModelError
from twinquant.records import parse_record_file

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402  torch may be absent
from torch.nn import functional as F  # noqa: E402  see above
from torch.utils import _pytree as pytree  # noqa: E402  see above
from torch.utils.data import DataLoader, IterableDataset, TensorDataset  # noqa: E402  see above

from twinquant.calibration.options import ObserverOptions  # noqa: E402  see above
from twinquant.calibration.station import Station  # noqa: E402  see above
from twinquant.calibration.watches import Watch  # noqa: E402  see above
from twinquant.registry import Tap  # noqa: E402  see above
from twinquant_torch import export, resizing  # noqa: E402  see above
from twinquant_torch.batch import BatchValues  # noqa: E402  see above
from twinquant_torch.inputs import InputLayout, check_example, split_call  # noqa: E402  see above
from twinquant_torch.request import ExportRequest, check_request  # noqa: E402  see above
from twinquant_torch.twin_module import TwinModule  # noqa: E402  see above
from twinquant_torch.user_data import as_feeds  # noqa: E402  see above

MINMAX = {"activation_algorithm": "minmax"}


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scale_of(values):
    return (max(float(values.max()), 0.0) - min(float(values.min()), 0.0)) / 255


LAYER = {"quant_enable": True, "activation_quant_params": {"act_algo": "minmax"}}


class Centred(nn.Module):
    """The second layer reads what depends on the whole batch."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(randn(6, 4)), nn.Parameter(randn(5, 6))

    def forward(self, x):
        y = F.linear(x, self.first)
        return F.linear(y - y.mean(0, keepdim=True), self.second)


class Attention(nn.Module):
    """Its first projection is functional, and one input has no batch axis."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x, position):
        x = x + position
        return self.attention(x, x, x, need_weights=False)[0]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_batch_is_never_cut_where_a_functional_layer_reads_it(folder):
    net, batches = Centred().eval(), [randn(4, 4, seed=1), randn(4, 4, seed=2), randn(3, 4, seed=3)]
    records = twinquant.calibrate(
        net, batches, "record.txt", config=MINMAX, batch_num=3, example_inputs=randn(2, 4, seed=9)
    ).records
    with torch.no_grad():
        hidden = [F.linear(batch, net.first) for batch in batches]
        centred = torch.cat([values - values.mean(0, keepdim=True) for values in hidden])
    assert records["linear_1"].scale_d == pytest.approx(scale_of(centred), rel=1e-5)


def test_a_last_batch_may_be_smaller_in_both_flows(folder):
    net, position = Attention().eval(), randn(1, 5, 8, seed=7)
    batches = [(randn(size, 5, 8, seed=number), position) for number, size in enumerate((4, 4, 3))]
    config = folder / "config.json"
    config.write_text(json.dumps({"batch_num": 3, **dict.fromkeys(("attention.linear", "attention.out_proj"), LAYER)}))
    twinquant.calibrate(net, batches, "one_call.txt", config=config, example_inputs=batches[0])
    module = amct.quantize_model("config.json", "modified.onnx", "record.txt", net, batches[0])
    for batch in batches:
        module(*batch)
    read = torch.cat([x + position for x, _ in batches])
    for file in ("one_call.txt", "record.txt"):
        records = parse_record_file(file).records
        assert records["attention.linear"].scale_d == pytest.approx(scale_of(read), rel=1e-6)
    assert (folder / "one_call.txt").read_text() == (folder / "record.txt").read_text()


class Looping(nn.Module):
    """Reads one row of a batch after the other: no exporter keeps such a batch's size open."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(randn(4, 4))

    def forward(self, x):
        rows = [x[i : i + 1] * (i + 1) for i in range(x.shape[0])]
        return F.linear(torch.cat(rows), self.weight)


def only_torchscript(monkeypatch):
    every = export._exporters
    monkeypatch.setattr(export, "_exporters", lambda module: [e for e in every(module) if e[0] == "TorchScript"])


@pytest.mark.parametrize("exporters", ["all", "TorchScript"])
def test_a_size_that_an_exporter_keeps_is_not_used_for_another(folder, monkeypatch, exporters):
    if exporters == "TorchScript":
        only_torchscript(monkeypatch)
    batches = [randn(size, 4, seed=size) for size in (3, 6, 2)]
    records = twinquant.calibrate(
        Looping().eval(), batches, "record.txt", config=MINMAX, batch_num=3, example_inputs=randn(2, 4, seed=9)
    ).records
    read = torch.cat([batch * torch.arange(1, len(batch) + 1)[:, None] for batch in batches])
    (record,) = records.values()
    assert record.scale_d == pytest.approx(scale_of(read), rel=1e-6)


class Odd(nn.Module):
    """Does with three rows what it does with no other number of them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(randn(4, 4)), nn.Parameter(randn(3, 4))

    def forward(self, x):
        factor = 100.0 if x.shape[0] == 3 else 1.0
        return F.linear(F.linear(x * factor, self.first), self.second)


def test_axes_that_the_user_names_are_compared_at_every_length_that_comes(folder, monkeypatch):
    net, batch = Odd().eval(), randn(3, 4)
    only_torchscript(monkeypatch)  # which names layers alike whether an axis is open or not
    records = twinquant.calibrate(
        net, [batch], "record.txt", config=MINMAX, batch_num=1, example_inputs=randn(2, 4), dynamic_axes={"x": {0: "n"}}
    ).records
    scales = [record.scale_d for record in records.values()]
    with torch.no_grad():
        expected = [scale_of(batch * 100), scale_of(F.linear(batch * 100, net.first))]
    assert sorted(scales) == pytest.approx(sorted(expected), rel=1e-5)


def test_names_of_other_arguments_are_refused():
    class Two(nn.Module):
        def forward(self, a, b):
            return a - b

    request = ExportRequest(Two(), (X, X), {}, input_names=["b", "a"])
    with pytest.raises(ArgumentError, match=r"input_names: 'b' is the name of another argument.*'a', 'b'"):
        check_request(request, None)


class Masked(nn.Module):
    """The older exporter leaves the mask out."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x, mask):
        assert mask.shape[0] == x.shape[0]
        return self.layer(x)


def test_an_input_that_no_node_reads_is_given_to_the_module(folder, monkeypatch):
    only_torchscript(monkeypatch)
    batches = [(randn(size, 4, seed=size), torch.ones(size)) for size in (2, 3)]
    result = twinquant.quantize(
        Masked().eval(), batches, "model", config=MINMAX, batch_num=2, example_inputs=batches[0]
    )
    assert result.records.records["layer"].scale_d == pytest.approx(scale_of(torch.cat([x for x, _ in batches])))
    assert [value.name for value in onnx.load(result.output.deploy.model).graph.input] == ["x"]


def test_a_model_that_is_not_exported_for_other_sizes_is_told_with_the_way_out(folder, monkeypatch):
    def refuse(request, accept):
        raise UnsupportedModelError("its batch has to be 2")

    monkeypatch.setattr(resizing, "export_as", refuse)
    with pytest.raises(UnsupportedModelError, match=r"'x' \[3, 4\].*its batch has to be 2.*drop_last=True"):
        twinquant.calibrate(
            Centred().eval(), [randn(3, 4)], "record.txt", batch_num=1, config=MINMAX, example_inputs=randn(2, 4)
        )


def layout_of(example, *names):
    args, kwargs = split_call(example)
    leaves, spec = pytree.tree_flatten((args, kwargs))
    tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
    return InputLayout(tuple(leaves), spec, names, tuple(frozenset({0}) for _ in tensors))


X, Y, LABELS = randn(2, 4), randn(2, 3), torch.ones(2)


@pytest.mark.parametrize(
    ("example", "names", "item", "expected"),
    [
        (X, ["x"], X, [X]),
        (X, ["x"], (X, LABELS), [X]),
        ((X,), ["x"], [X, LABELS], [X]),
        ((X, 2.0, Y), ["x", "bias"], (X, 2.0, Y), [X, Y]),
        ({"x": X, "scale": 2.0}, ["x"], {"x": X, "scale": 2.0}, [X]),
        ({"x": X, "y": Y}, ["x", "y"], {"labels": LABELS, "y": Y, "x": X}, [X, Y]),
        (([X, X], {"u": Y}), ["a", "b", "c"], ([X, X], {"u": Y}), [X, X, Y]),
        ({"x": X}, ["renamed"], UserDict(x=X, labels=LABELS), [X]),
        ((X, Y), ["x", "y"], {"y": Y, "labels": LABELS, "x": X}, [X, Y]),
        ((X,), ["x"], (X.numpy(), LABELS), [X]),
    ],
)
def test_a_batch_is_taken_as_the_example_was(example, names, item, expected):
    feeds = layout_of(example, *names).feeds_of(item)
    assert list(feeds) == names
    for array, tensor in zip(feeds.values(), expected, strict=True):
        np.testing.assert_array_equal(array, tensor.numpy())


@pytest.mark.parametrize(
    ("example", "item", "message"),
    [
        ((X, 2.0), (X, 5.0), r"the value 2\.0, this call has 5\.0"),
        ({"x": X}, {"y": X}, r"exported with \(x=Tensor \[2, 4\]\).*this call has \(y=Tensor"),
        (([X, X],), (X, X), r"exported with \(\[Tensor"),
        ((X, Y), (X, 3.0), r"input 'b': must be a tensor, got float"),
    ],
)
def test_a_batch_that_is_another_call_is_refused(example, item, message):
    names = "ab"[: sum(isinstance(leaf, torch.Tensor) for leaf in pytree.tree_leaves(example))]
    with pytest.raises(DataError, match=message):
        layout_of(example, *names).feeds_of(item)


def test_an_argument_of_forward_is_no_label():
    layout = replace(layout_of({"x": X}, "x"), parameters=("x", "mask"))
    with pytest.raises(DataError, match=r"exported with \(x=Tensor \[2, 4\]\).*mask=Tensor"):
        layout.feeds_of({"x": X, "mask": Y})


def test_what_may_be_an_argument_is_told_of_once(caplog):
    layout = replace(layout_of(X, "x"), parameters=("x", "mask"))
    assert [feeds.keys() for feeds in as_feeds([(X, Y), (X, Y)], layout)] == [{"x"}, {"x"}]
    (record,) = caplog.records
    assert "taken for labels and left out; if it is the argument 'mask' of forward" in record.message
    caplog.clear()
    list(as_feeds([(X, Y)], replace(layout, parameters=("x",))))
    assert not caplog.records


@pytest.mark.parametrize("item", [X.numpy(), {"x": X.numpy()}, {"other": X}])
def test_arrays_and_batches_with_other_names_are_left_as_they_are(item):
    assert layout_of(X, "renamed").feeds_of(item) is None


def test_bfloat16_stays_what_it_is():
    (array,) = layout_of(X.bfloat16(), "x").feeds_of(X.bfloat16()).values()
    assert array.dtype.name == "bfloat16"
    np.testing.assert_array_equal(array.astype(np.float32), X.bfloat16().float().numpy())


class Streamed(IterableDataset):
    def __init__(self, rows):
        self._rows = rows

    def __iter__(self):
        return iter(self._rows)


def test_loaders_datasets_lists_and_generators_give_feeds():
    layout, images = layout_of(X, "x"), randn(6, 4)
    dataset = TensorDataset(images, torch.arange(6))
    for data, length in (
        (DataLoader(dataset, batch_size=2), 3),
        ([(images[:2], 0), (images[2:4], 1), (images[4:], 2)], 3),
        (dataset, 6),
        (iter([images]), None),
        (DataLoader(Streamed(images), batch_size=2), None),
    ):
        feeds = as_feeds(data, layout)
        assert length is None or len(feeds) == length
        np.testing.assert_array_equal(np.concatenate([np.atleast_2d(item["x"]) for item in feeds]), images.numpy())
    assert as_feeds("folder", layout) == "folder"
    assert as_feeds(images, layout) is images


def test_errors_about_a_batch_name_it():
    feeds = as_feeds([X, (X, X)], layout_of((X, 2.0), "x"))
    with pytest.raises(DataError, match=r"^data, batch 2: the model was exported with"):
        feeds[1]


def twin(path, outputs):
    nodes = [helper.make_node("Mul", ["x", "x"], ["square"]), helper.make_node("Neg", ["x"], ["minus"])]
    value = [TensorProto.FLOAT, ["n", 4]]
    graph = helper.make_graph(
        nodes,
        "twin",
        [helper.make_tensor_value_info("x", *value)],
        [helper.make_tensor_value_info(name, *value) for name in outputs],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


def test_a_twin_is_called_and_answers_as_the_model(tmp_path):
    nested = pytree.tree_flatten({"minus": 0, "square": [0]})[1]
    path = twin(tmp_path / "twin.onnx", ["minus", "square"])
    output = TwinModule(path, layout_of({"scale": 2.0, "inputs": X}, "x"), nested)(inputs=X, scale=2.0)
    assert output.keys() == {"minus", "square"}
    torch.testing.assert_close(output["square"][0], X * X)
    torch.testing.assert_close(TwinModule(path, layout_of((2.0, X), "x"))(2.0, X)[0], -X)
    torch.testing.assert_close(TwinModule(twin(path, ["minus"]), layout_of(X, "x"))(X), -X)
    with pytest.raises(DataError, match=r"the value 2\.0, this call has 3\.0"):
        TwinModule(path, layout_of((2.0, X), "x"))(3.0, X)


def test_values_that_no_hook_can_read_are_an_error_that_names_the_layer():
    station = Station(Watch(Tap("fc"), ("fc",), ObserverOptions()))
    values = BatchValues([station], 0)
    with torch.no_grad():
        torch.vmap(lambda row: (values.receive(Tap("fc"), row), row)[1])(X)
    with pytest.raises(CalibrationError, match=r"'fc'.*batch 1: its values cannot be read.*torch\.vmap"):
        values.commit()


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.zeros(0, 4), r"shape \[0, 4\] is an empty batch"),
        (torch.tensor([[1.0, float("nan")]]), "holds NaN"),
    ],
)
def test_example_inputs_that_show_nothing_are_refused(example, message):
    with pytest.raises(DataError, match=message):
        check_example((example,), {}, torch.device("cpu"))


def test_a_mask_of_infinities_is_an_example():
    check_example((torch.tensor([[0.0, -float("inf")]]),), {}, torch.device("cpu"))


def test_a_model_without_values_is_refused():
    with pytest.raises(DataError, match=r"'meta', which has no values"):
        check_example((X,), {}, torch.device("meta"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dynamic_axes": "x"}, r"dynamic_axes: must say .*got 'x'"),
        ({"dynamic_axes": ["x"]}, r"dynamic_axes: must say .*got \['x'\]"),
        ({"dynamic_axes": {"x": None}}, r"got None for 'x'"),
        ({"dynamic_axes": {"x": 0}}, r"got 0 for 'x'"),
        ({"dynamic_axes": {"x": {"a": "n"}}}, r"got \{'a': 'n'\} for 'x'"),
        ({"dynamic_axes": {"x": {0: 5}}}, r"names of axes are texts"),
        ({"opset": "18"}, r"opset: must be a whole number, got '18'"),
        ({"input_names": [3]}, r"input_names: must be a list of names.*\[3\]"),
        ({"input_names": [""]}, r"input_names: must be a list of names.*\[''\]"),
    ],
)
def test_settings_of_another_form_are_told_with_the_form(settings, message):
    with pytest.raises(ArgumentError, match=message):
        check_request(ExportRequest(nn.Linear(4, 4), (X,), {}, **{"input_names": ["x"], **settings}), None)


def test_a_refused_model_leaves_no_folder_behind(folder, small_net, batches):
    amct.create_quant_config("config.json", small_net, batches[0])
    with pytest.raises(UnsupportedModelError, match="training mode"):
        amct.quantize_model("config.json", "new/a/modified.onnx", "other/record.txt", small_net.train(), batches[0])
    assert [path.name for path in folder.iterdir()] == ["config.json"]


def test_an_activation_without_a_range_ends_the_calibration(folder, small_net, batches):
    amct.create_quant_config("config.json", small_net, batches[0])
    module = amct.quantize_model("config.json", "modified.onnx", "record.txt", small_net, batches[0])
    with pytest.raises(CalibrationError, match=r"every value of an activation is the same.*'stem'.*skip_layers"):
        module(torch.zeros_like(batches[0]))
