"""What each command prints and returns."""

from __future__ import annotations

import pytest

from twinquant.cli.parser import build_parser
from twinquant.errors import CapabilityError


def rows(text):
    """The cells of a plain table: columns are at least two spaces apart."""
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in text.splitlines()]


def test_save_writes_both_twins_and_lists_them(run, model, record, tmp_path):
    code, out, _ = run("save", model, record, tmp_path / "out" / "net")
    assert code == 0
    assert out.splitlines() == [
        "2 of 5 nodes quantized",
        f"fake_quant  {tmp_path}/out/net_fake_quant.paper",
        f"deploy      {tmp_path}/out/net_deploy.paper",
    ]
    assert sorted(path.name for path in (tmp_path / "out").iterdir() if not path.name.startswith(".")) == [
        "net_deploy.paper",
        "net_fake_quant.paper",
    ]


def test_save_type_deploy_writes_the_deploy_twin_only(run, model, record, tmp_path):
    code, out, _ = run("save", model, record, tmp_path / "out" / "net", "--save-type", "Deploy")
    assert code == 0
    assert "fake_quant" not in out
    assert not (tmp_path / "out" / "net_fake_quant.paper").exists()
    assert (tmp_path / "out" / "net_deploy.paper").exists()


def test_save_takes_a_framework_by_name(run, model, record, tmp_path):
    other_name = model.rename(tmp_path / "net.unknown")
    assert run("save", other_name, record, tmp_path / "net")[0] == 1
    assert run("save", other_name, record, tmp_path / "net", "--framework", "paper")[0] == 0


def test_plan_with_a_record_tells_factors_and_reasons_of_every_node(run, model, record):
    code, out, _ = run("plan", model, record)
    assert code == 0
    assert rows(out)[2:7] == [
        ["first", "Conv", "yes", "input INT8 scale 0.5 offset -3; weight INT8 scale 2 of 0.125 to 0.25; bias INT32"],
        ["bend", "Relu", "no", "operators of type Relu are not quantized"],
        ["second", "Gemm", "yes", "input INT16 scale 0.5 offset -3; weight INT6 scale 2"],
        ["third", "Gemm", "no", "its weight is not constant"],
        ["fourth", "Gemm", "no", "no record names it"],
    ]
    assert out.splitlines()[-1] == "2 of 5 nodes will be quantized; 1 quantizable layer without a record"


def test_plan_without_a_record_tells_which_layers_could_be_quantized(run, model):
    code, out, _ = run("plan", model)
    assert code == 0
    assert rows(out)[2:7] == [
        ["first", "Conv", "yes", "convolution"],
        ["bend", "Relu", "no", "operators of type Relu are not quantized"],
        ["second", "Gemm", "yes", "fully connected (Gemm)"],
        ["third", "Gemm", "no", "its weight is not constant"],
        ["fourth", "Gemm", "yes", "fully connected (Gemm)"],
    ]
    assert out.splitlines()[-1] == "3 of 5 nodes can be quantized"


def test_plan_writes_nothing(run, model, record, tmp_path):
    before = sorted(tmp_path.iterdir())
    run("plan", model, record)
    assert sorted(tmp_path.iterdir()) == before


def test_inspect_of_a_record_lists_its_layers_with_their_lines(run, record, registry):
    code, out, _ = run("inspect", record)
    assert code == 0
    assert out.splitlines()[0].endswith("2 layers")
    assert rows(out)[4:6] == [
        ["first", "2", "0.5", "-3", "2 of 0.125 to 0.25", "INT8"],
        ["second", "3", "0.5", "-3", "2", "INT16 input, INT6 weight"],
    ]


def test_inspect_names_the_keys_that_occur_twice(run, record, registry, caplog):
    record.write_text(record.read_text() + 'record { key: "first" value { scale_d: 1 offset_d: 0 } }')
    code, out, _ = run("inspect", record)
    assert code == 0
    assert "record 'first' occurs more than once" in caplog.text
    assert rows(out)[4][:4] == ["first", "4", "1", "0"]


def test_inspect_of_a_model_lists_what_its_plugin_tells(run, model):
    code, out, _ = run("inspect", model)
    assert code == 0
    assert rows(out)[2:] == [["nodes", "5"], ["bytes", "2"]]


def test_inspect_of_a_binary_file_that_nobody_knows_says_so(run, tmp_path, registry):
    unknown = tmp_path / "weights.bin"
    unknown.write_bytes(b"\x00\x01\x02")
    code, _, err = run("inspect", unknown)
    assert code == 1
    assert "weights.bin" in err


def test_plugins_lists_working_and_absent_ones_with_the_install_line(run, registry):
    code, out, _ = run("plugins")
    assert code == 0
    assert [row[:2] for row in rows(out)[2:]] == [
        ["caffe", "absent"],
        ["onnx", "absent"],
        ["paper", "ok"],
        ["torch", "absent"],
    ]
    assert 'pip install "twinquant[onnx]"' in out


def test_verify_of_agreeing_twins_returns_0(run, model, tmp_path):
    code, out, _ = run("verify", model, model)
    assert code == 0
    assert rows(out)[2:4] == [
        ["first", "Conv", "integer", "yes", "0.25", "0.125", "0"],
        ["y", "output", "-", "-", "-", "-", "0.5"],
    ]
    assert out.splitlines()[-1] == "the twins agree: 1 layer checked"


def test_verify_of_disagreeing_twins_returns_1_and_names_the_problem(run, model, tmp_path):
    deploy = tmp_path / "deploy.paper"
    deploy.write_text("wrong")
    code, out, _ = run("verify", model, deploy)
    assert code == 1
    assert "first: weight: 1 of 6 values differs" in out.splitlines()
    assert out.splitlines()[-1] == "the twins DISAGREE: 1 of 1 layer"


def test_verify_tells_what_to_know_although_the_twins_agree(run, model, tmp_path):
    deploy = tmp_path / "deploy.paper"
    deploy.write_text("wide")
    code, out, _ = run("verify", model, deploy)
    assert code == 0
    assert "first: an accumulator leaves int32" in out.splitlines()


def test_verify_of_a_data_file_that_is_none_says_so(run, model, tmp_path):
    code, _, err = run("verify", model, model, "--data", tmp_path / "absent.npz")
    assert code == 1
    assert "absent.npz" in err


def test_demo_prints_one_table_and_where_the_files_are(run, registry, tmp_path):
    code, out, _ = run("demo", "--folder", tmp_path / "here")
    assert code == 0
    assert ["algorithm", "accuracy", "agree"] in rows(out)
    assert ["minmax", "99.00%", "yes"] in rows(out)
    assert out.splitlines()[-1] == f"the files are in {tmp_path}/here"


def test_demo_leaves_out_what_lacks_a_package_of_its_own_and_says_so(run, registry, monkeypatch, tmp_path):
    class Poor(type(registry.frameworks["paper"])):
        name = "poor"

        def demo(self, folder):
            raise CapabilityError("OpenCV is missing")

    registry.register(Poor())
    code, out, _ = run("demo", "--folder", tmp_path / "here")
    assert code == 0
    assert ["minmax", "99.00%", "yes"] in rows(out)
    assert "poor demo: left out, OpenCV is missing" in out.splitlines()
    code, _, err = run("demo", "--folder", tmp_path / "there", "--framework", "poor")
    assert (code, err) == (1, "twinquant: error: OpenCV is missing\n")


def test_demo_without_a_plugin_that_has_one_says_what_to_install(run, monkeypatch, registry):
    monkeypatch.setattr(type(registry.frameworks["paper"]), "capabilities", frozenset())
    code, _, err = run("demo")
    assert code == 1
    assert 'pip install "twinquant[onnx]"' in err


@pytest.mark.parametrize(
    "argv",
    [["save", "m", "r", "out/"], ["quantize", "m", "--data", "d", "--save-path", "out/"]],
    ids=["save", "quantize"],
)
def test_the_case_of_a_save_type_does_not_matter(argv):
    assert build_parser().parse_args([*argv, "--save-type", "deploy"]).save_type == "Deploy"
