"""`save_model` and `verify` from end to end, with a made-up framework that writes small text files."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import twinquant
from twinquant.errors import (
    ArgumentError,
    CapabilityError,
    ModelContentError,
    OutputConflictError,
    OutputPathError,
    OutputWriteError,
    RecordError,
    VerificationError,
)
from twinquant.outputs import DualOutput, Flavor
from twinquant.plan import LayerInfo, LayerKind, QuantPlan
from twinquant.records import LayerRecord, RecordSet
from twinquant.registry import Capability, Framework, Match
from twinquant.verification import VerifyReport

RECORD = (
    'record {\n  key: "pool"\n  value {\n    scale_d: 0.5\n    offset_d: 0\n    scale_w: 1.0\n    offset_w: 0\n  }\n}\n'
)


class TinyFramework(Framework):
    """Its graph is the text of the source; its twins hold that text, and its first line names a second file."""

    name = "tiny"

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.fail_in: dict[str, BaseException] = {}

    def _enter(self, step: str) -> None:
        self.calls.append(step)
        if step in self.fail_in:
            raise self.fail_in[step]

    def recognize(self, source: Any) -> Match:
        return Match.NAME

    def load(self, source: Any) -> str:
        self._enter("load")
        return Path(source).read_text() if isinstance(source, (str, os.PathLike)) else source[0]

    def layers(self, graph: str) -> Sequence[LayerInfo]:
        self._enter("layers")
        return [LayerInfo("pool", "Pool", LayerKind.AVERAGE_POOL, activation="x")]

    def insert(self, graph: str, plan: QuantPlan, flavor: Flavor) -> str:
        self._enter(f"insert {flavor.value}")
        return f"{graph} as {flavor.value}"

    def write(self, graph: str, folder: Path, prefix: str, flavor: Flavor) -> Sequence[Path]:
        stem = f"{prefix}_" if prefix else ""
        model, weights = folder / f"{stem}{flavor.value}_model.tiny", folder / f"shared_{flavor.value}.bin"
        model.write_text(f"{weights.name}\n{graph}")
        self._enter(f"write {flavor.value}")
        weights.write_text(graph)
        return [model, weights]

    def companions(self, model: Path) -> Sequence[str]:
        return model.read_text().splitlines()[:1]

    companion_endings = (".bin",)


class VerifyingFramework(TinyFramework):
    capabilities = frozenset({Capability.VERIFY})

    def verify(self, fake_quant: Path, deploy: Path, data: Mapping[str, Any] | None) -> VerifyReport:
        self._enter(f"verify {fake_quant.name} {deploy.name}")
        self.data = data
        return VerifyReport(())


@pytest.fixture
def tiny(monkeypatch):
    framework = TinyFramework()
    monkeypatch.setattr("twinquant.api.select_framework", lambda _source, _name: framework)
    monkeypatch.setattr("twinquant.api.notify_saved", lambda *_: framework.calls.append("observers"))
    return framework


@pytest.fixture
def model(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "net.tiny").write_text("the net")
    (tmp_path / "in" / "record.txt").write_text(RECORD)
    return tmp_path / "in" / "net.tiny"


@pytest.fixture
def record(model):
    return model.with_name("record.txt")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# save_model


def test_both_twins_are_written_and_returned_with_their_plan(tiny, model, record, tmp_path):
    output = twinquant.save_model(model, record, tmp_path / "out" / "net")
    assert output.fake_quant.model == tmp_path / "out" / "net_fake_quant_model.tiny"
    assert output.deploy.model == tmp_path / "out" / "net_deploy_model.tiny"
    assert output.deploy.model.read_text() == "shared_deploy.bin\nthe net as deploy"
    assert output.deploy.files[1].read_text() == "the net as deploy"
    assert len(names(tmp_path / "out")) == 4
    assert [layer.name for layer in output.plan] == ["pool"]
    assert output.plan.framework == "tiny"


class PreparingFramework(TinyFramework):
    def prepare(self, graph: str, records: RecordSet) -> str:
        return f"{graph} made ready for {', '.join(record.key for record in records)}"


def test_what_is_saved_is_what_the_framework_prepared_for_the_records(tiny, model, record, tmp_path, monkeypatch):
    monkeypatch.setattr("twinquant.api.select_framework", lambda _source, _name: PreparingFramework())
    output = twinquant.save_model(model, record, tmp_path / "out" / "net")
    assert output.deploy.files[1].read_text() == "the net made ready for pool as deploy"


def test_the_steps_run_forward_only(tiny, model, record, tmp_path):
    twinquant.save_model(model, record, tmp_path / "out" / "net")
    assert tiny.calls == [
        "load",
        "layers",
        "insert fake_quant",
        "write fake_quant",
        "insert deploy",
        "write deploy",
        "observers",
    ]


@pytest.mark.parametrize(
    ("save_type", "words"),
    [
        ("Both", {"fake_quant", "deploy"}),
        ("both", {"fake_quant", "deploy"}),
        ("Fakequant", {"fake_quant"}),
        ("FAKEQUANT", {"fake_quant"}),
        ("Deploy", {"deploy"}),
        ("deploy", {"deploy"}),
    ],
)
def test_the_save_type_chooses_the_twins_in_any_case(tiny, model, record, tmp_path, save_type, words):
    output = twinquant.save_model(model, record, f"{tmp_path}/out/", save_type=save_type)
    assert {artifact.flavor.value for artifact in output.artifacts} == words
    assert {f"{word}_model.tiny" for word in words} == {name for name in names(tmp_path / "out") if "model" in name}


@pytest.mark.parametrize("save_type", ["", "All", "fake_quant", None, 1])
def test_an_unknown_save_type_is_an_error_that_lists_the_known_ones(tiny, model, record, tmp_path, save_type):
    with pytest.raises(ArgumentError, match="'Both', 'Fakequant', 'Deploy'"):
        twinquant.save_model(model, record, tmp_path / "out" / "net", save_type=save_type)
    assert tiny.calls == []
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("save_path", ["out/", "out", Path("out"), "out/."])
def test_an_existing_folder_takes_the_files_without_a_prefix(tiny, model, record, tmp_path, monkeypatch, save_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "out").mkdir()
    twinquant.save_model(model, record, save_path)
    assert {"fake_quant_model.tiny", "deploy_model.tiny"} < names(tmp_path / "out")


@pytest.mark.parametrize("save_path", ["", "."])
def test_an_empty_save_path_means_the_working_directory(tiny, model, record, tmp_path, monkeypatch, save_path):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    output = twinquant.save_model(model, record, save_path)
    assert output.deploy.model.resolve() == tmp_path.resolve() / "here" / "deploy_model.tiny"


def test_two_dots_mean_the_parent_folder(tiny, model, record, tmp_path, monkeypatch):
    (tmp_path / "out" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "out" / "deep")
    twinquant.save_model(model, record, "..")
    assert "deploy_model.tiny" in names(tmp_path / "out")


def test_records_need_not_come_from_a_file(tiny, tmp_path):
    records = RecordSet(
        {
            "pool": LayerRecord(
                "pool", scale_d=0.25, offset_d=3, scale_w=np.ones(1, np.float32), offset_w=np.zeros(1, np.int32)
            )
        }
    )
    output = twinquant.save_model(["a graph in memory"], records, tmp_path / "net")
    assert output.plan.layers[0].activation.scale == 0.25
    assert "a graph in memory" in output.deploy.model.read_text()


def test_what_the_plan_warns_of_is_logged(tiny, model, record, tmp_path, caplog):
    record.write_text(RECORD + RECORD)
    output = twinquant.save_model(model, record, tmp_path / "net")
    assert len(output.plan.warnings) == 1
    assert [entry[1:] for entry in caplog.record_tuples] == [(logging.WARNING, output.plan.warnings[0])]


def test_progress_is_told_between_the_steps_from_zero_to_one(tiny, model, record, tmp_path):
    told = []
    twinquant.save_model(model, record, tmp_path / "net", progress=lambda step, done: told.append((step, done)))
    fractions = [done for _, done in told]
    assert fractions == sorted(set(fractions))
    assert (fractions[0], fractions[-1]) == (0.0, 1.0)
    assert "writing the deploy model" in [step for step, _ in told]


def test_a_progress_callback_that_raises_stops_the_save_and_leaves_nothing(tiny, model, record, tmp_path):
    def cancel(_step: str, done: float) -> None:
        if done > 0.5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        twinquant.save_model(model, record, tmp_path / "out" / "net", progress=cancel)
    assert not (tmp_path / "out").exists()


def test_the_files_are_in_place_and_the_folder_is_free_when_the_observers_are_told(
    tiny, model, record, tmp_path, monkeypatch
):
    seen = []

    def observe(framework: str, plan: QuantPlan, output: DualOutput) -> None:
        assert framework == "tiny"
        assert plan is output.plan
        seen.append(names(tmp_path / "out"))
        if len(seen) < 2:
            twinquant.save_model(model, record, tmp_path / "out" / "net")

    monkeypatch.setattr("twinquant.api.notify_saved", observe)
    output = twinquant.save_model(model, record, tmp_path / "out" / "net")
    assert seen == [{path.name for artifact in output.artifacts for path in artifact.files}] * 2


# save_model: bad input


def test_a_wrong_record_ends_before_the_model_is_loaded(tiny, model, record, tmp_path):
    record.write_text("no record")
    with pytest.raises(RecordError):
        twinquant.save_model(model, record, tmp_path / "out" / "net")
    assert tiny.calls == []
    assert not (tmp_path / "out").exists()


def test_a_record_that_does_not_fit_ends_before_a_folder_is_touched(tiny, model, record, tmp_path):
    record.write_text(RECORD.replace("pool", "loop"))
    with pytest.raises(RecordError, match="loop"):
        twinquant.save_model(model, record, tmp_path / "out" / "net")
    assert tiny.calls == ["load", "layers"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("step", ["insert fake_quant", "write fake_quant", "insert deploy", "write deploy"])
@pytest.mark.parametrize("error", [ModelContentError("NaN"), ZeroDivisionError(), KeyboardInterrupt(), MemoryError()])
def test_a_step_that_fails_leaves_the_folder_as_it_was(tiny, model, record, tmp_path, step, error):
    out = tmp_path / "out"
    twinquant.save_model(model, record, out / "net")
    before = {path.name: path.stat().st_ino for path in out.iterdir()}
    tiny.fail_in[step] = error
    with pytest.raises(type(error)) as raised:
        twinquant.save_model(model, record, out / "net")
    assert raised.value is error
    assert {path.name: path.stat().st_ino for path in out.iterdir()} == before


def test_a_full_disk_is_an_error_that_leaves_nothing_half_written(tiny, model, record, tmp_path):
    tiny.fail_in["write deploy"] = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(OutputWriteError, match="No space left on device") as raised:
        twinquant.save_model(model, record, tmp_path / "out" / "net")
    assert raised.value.__cause__ is tiny.fail_in["write deploy"]
    assert not (tmp_path / "out").exists()


def test_an_output_may_not_replace_the_model(tiny, record, tmp_path):
    model = tmp_path / "in" / "deploy_model.tiny"
    model.write_text("precious")
    with pytest.raises(OutputPathError, match=r"deploy_model\.tiny' would replace an input"):
        twinquant.save_model(model, record, tmp_path / "in")
    assert model.read_text() == "precious"


def test_an_output_may_not_replace_the_record(tiny, model, tmp_path):
    record = tmp_path / "in" / "shared_deploy.bin"
    record.write_text(RECORD)
    with pytest.raises(OutputPathError, match=r"shared_deploy\.bin' would replace an input"):
        twinquant.save_model(model, record, tmp_path / "in")
    assert record.read_text() == RECORD


def test_an_output_may_not_replace_a_file_of_another_model(tiny, model, record, tmp_path):
    twinquant.save_model(model, record, tmp_path / "out" / "first")
    with pytest.raises(OutputConflictError, match=r"'shared_deploy\.bin'.*'first_deploy_model\.tiny'"):
        twinquant.save_model(model, record, tmp_path / "out" / "second")


# verify


@pytest.fixture
def verifying(monkeypatch):
    framework = VerifyingFramework()
    monkeypatch.setattr("twinquant.api.select_framework", lambda _source, _name: framework)
    return framework


def test_verify_hands_the_files_to_their_framework(verifying, tmp_path):
    report = twinquant.verify(str(tmp_path / "f.tiny"), tmp_path / "d.tiny")
    assert report.agree
    assert verifying.calls == ["verify f.tiny d.tiny"]
    assert verifying.data is None


def test_verify_reads_the_arrays_of_an_npz_file(verifying, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.arange(3, dtype=np.float32), y=np.int64(4))
    twinquant.verify("f.tiny", "d.tiny", tmp_path / "data.npz")
    assert set(verifying.data) == {"x", "y"}
    assert verifying.data["x"].dtype == np.float32
    assert verifying.data["x"].tolist() == [0, 1, 2]


def test_verify_takes_a_dict_of_arrays(verifying):
    twinquant.verify("f.tiny", "d.tiny", {"x": [[1.5, 2.5]]})
    assert verifying.data["x"].tolist() == [[1.5, 2.5]]


def test_a_missing_data_file_is_an_error_that_names_it(verifying):
    with pytest.raises(ArgumentError, match=r"'missing\.npz' cannot be read.*No such file"):
        twinquant.verify("f.tiny", "d.tiny", "missing.npz")


@pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04cut off"])
def test_a_damaged_data_file_is_an_error(verifying, tmp_path, content):
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(ArgumentError, match=r"numpy\.savez"):
        twinquant.verify("f.tiny", "d.tiny", tmp_path / "data.npz")


def test_a_data_file_with_a_damaged_array_is_an_error(verifying, tmp_path):
    np.savez_compressed(tmp_path / "data.npz", x=np.arange(10_000))
    content = bytearray((tmp_path / "data.npz").read_bytes())
    content[200:400] = bytes(200)
    (tmp_path / "data.npz").write_bytes(content)
    with pytest.raises(ArgumentError, match=r"data\.npz' cannot be read"):
        twinquant.verify("f.tiny", "d.tiny", tmp_path / "data.npz")


def test_pickled_data_is_refused_not_run(verifying, tmp_path):
    np.savez(tmp_path / "data.npz", x=np.array([{}], dtype=object))
    with pytest.raises(ArgumentError, match="plain arrays"):
        twinquant.verify("f.tiny", "d.tiny", tmp_path / "data.npz")


def test_a_single_array_without_a_name_is_refused(verifying, tmp_path):
    np.save(tmp_path / "data.npy", np.zeros(3))
    with pytest.raises(ArgumentError, match="without a name"):
        twinquant.verify("f.tiny", "d.tiny", tmp_path / "data.npy")


def test_a_framework_that_cannot_verify_says_so(tiny):
    with pytest.raises(CapabilityError, match="the tiny plugin cannot verify"):
        twinquant.verify("f.tiny", "d.tiny")


def test_models_of_two_frameworks_are_no_twins(monkeypatch):
    other = VerifyingFramework()
    other.name = "other"
    found = {"f.tiny": VerifyingFramework(), "d.other": other}
    monkeypatch.setattr("twinquant.api.select_framework", lambda source, _name: found[str(source)])
    with pytest.raises(VerificationError, match=r"'f\.tiny' is a model of tiny, 'd\.other' one of other"):
        twinquant.verify("f.tiny", "d.other")


def test_verify_first_finishes_a_save_that_was_killed(verifying, tmp_path):
    staging = tmp_path / ".twinquant-staging"
    (staging / "new").mkdir(parents=True)
    (staging / "new" / "d.tiny").write_text("new")
    (staging / "journal.json").write_text('{"version": 1, "moves": [["d.tiny", "new", "live"]]}')
    twinquant.verify(tmp_path / "f.tiny", tmp_path / "d.tiny")
    assert names(tmp_path) == {"d.tiny"}


def test_an_option_that_the_framework_does_not_know_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="fake_quant_stile: the onnx framework has no such option"):
        twinquant.save_model("m.onnx", "record.txt", tmp_path / "out" / "m", fake_quant_stile="python")
