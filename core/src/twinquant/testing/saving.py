# A test's name is its sentence, so the tests of a contract have no docstrings:
# ruff: noqa: D102
"""Contract tests: the framework under `twinquant.save_model`, from the source to both twins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import twinquant
from twinquant.errors import OutputWriteError, RecordLayerError, RecordValueError
from twinquant.outputs import DualOutput, Flavor
from twinquant.records import RecordSet, write_record_file
from twinquant.registry import Capability, Framework
from twinquant.testing.subject import Subject, contents

__all__ = ["SavingContract"]


class SavingContract(Subject):
    """Both twins land together or not at all."""

    def all_records(self, source: Any) -> RecordSet:
        """Return the records of all quantizable layers."""
        framework = self.framework()
        return self.records(framework.layers(framework.load(source)))

    def save(
        self, source: Any, save_path: Path, records: RecordSet | None = None, save_type: str = "Both"
    ) -> DualOutput:
        """Save the model under test."""
        chosen = self.all_records(source) if records is None else records
        return twinquant.save_model(source, chosen, save_path, save_type=save_type)

    def test_both_twins_land_in_the_folder_and_nothing_else(self, source: Any, tmp_path: Path) -> None:
        folder = tmp_path / "out"
        output = self.save(source, folder / "net")
        files = [*output.fake_quant.files, *output.deploy.files, *output.sidecars]
        assert {file.resolve() for file in files} == {folder.resolve() / name for name in contents(folder)}
        assert tuple(layer.name for layer in output.plan) == tuple(self.layer_names)

    def test_a_record_file_saves_what_its_records_save(self, source: Any, tmp_path: Path) -> None:
        records = self.all_records(source)
        write_record_file(records, tmp_path / "record.txt")
        self.save(source, tmp_path / "memory" / "net", records)
        twinquant.save_model(source, tmp_path / "record.txt", tmp_path / "file" / "net")
        assert contents(tmp_path / "file") == contents(tmp_path / "memory")

    def test_saving_again_replaces_the_files_with_the_same(self, source: Any, tmp_path: Path) -> None:
        self.save(source, tmp_path / "out" / "net")
        before = contents(tmp_path / "out")
        self.save(source, tmp_path / "out" / "net")
        assert contents(tmp_path / "out") == before

    @pytest.mark.parametrize(("save_type", "flavor"), [("Deploy", Flavor.DEPLOY), ("Fakequant", Flavor.FAKE_QUANT)])
    def test_one_twin_alone_is_that_of_both(self, source: Any, save_type: str, flavor: Flavor, tmp_path: Path) -> None:
        both = self.save(source, tmp_path / "both" / "net")
        alone = self.save(source, tmp_path / "alone" / "net", save_type=save_type)
        assert [artifact.flavor for artifact in alone.artifacts] == [flavor]
        assert [file.read_bytes() for file in alone[flavor].files] == [file.read_bytes() for file in both[flavor].files]

    def test_the_source_stays_as_it_was_when_saved(self, source: Any, tmp_path: Path) -> None:
        before = self.fingerprint(source)
        self.save(source, tmp_path / "out" / "net")
        assert self.fingerprint(source) == before

    def test_a_failed_save_leaves_nothing(self, source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        _let_the_second_twin_fail(type(self.framework()), monkeypatch)
        with pytest.raises(OutputWriteError):
            self.save(source, tmp_path / "out" / "net")
        assert contents(tmp_path / "out") == {}

    def test_a_failed_save_leaves_the_previous_outputs(
        self, source: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        records = self.all_records(source)
        self.save(source, tmp_path / "out" / "net", records)
        before = contents(tmp_path / "out")
        name = self.layer_names[0]
        changed = RecordSet({**records.records, name: replace(records.records[name], scale_d=0.5)})
        _let_the_second_twin_fail(type(self.framework()), monkeypatch)
        with pytest.raises(OutputWriteError):
            self.save(source, tmp_path / "out" / "net", changed)
        assert contents(tmp_path / "out") == before

    def test_a_record_for_an_unknown_layer_is_refused_with_close_names(self, source: Any, tmp_path: Path) -> None:
        records = self.all_records(source).records
        known = self.layer_names[0]
        stray = RecordSet({f"{known}x": replace(records[known], key=f"{known}x")})
        with pytest.raises(RecordLayerError, match="did you mean") as caught:
            self.save(source, tmp_path / "out" / "net", stray)
        assert repr(known) in str(caught.value)
        assert contents(tmp_path / "out") == {}

    def test_an_incomplete_record_is_refused(self, source: Any, tmp_path: Path) -> None:
        name = self.layer_names[0]
        records = self.all_records(source).records
        with pytest.raises(RecordValueError, match="scale_d"):
            self.save(source, tmp_path / "out" / "net", RecordSet({name: replace(records[name], scale_d=None)}))
        assert contents(tmp_path / "out") == {}

    def test_the_twins_of_one_save_verify(self, source: Any, tmp_path: Path) -> None:
        if Capability.VERIFY not in self.framework().capabilities:
            pytest.skip("the framework does not verify")
        output = self.save(source, tmp_path / "out" / "net")
        report = twinquant.verify(output.fake_quant.model, output.deploy.model)
        assert report.agree, report
        assert {layer.name for layer in report.layers} == set(self.layer_names)

    def test_the_twins_of_different_records_do_not_verify(self, source: Any, tmp_path: Path) -> None:
        if Capability.VERIFY not in self.framework().capabilities:
            pytest.skip("the framework does not verify")
        records = self.all_records(source).records
        name = self.layer_names[-1]
        changed = RecordSet({**records, name: replace(records[name], offset_d=7)})
        one = self.save(source, tmp_path / "one" / "net")
        other = self.save(source, tmp_path / "other" / "net", changed)
        assert not twinquant.verify(one.fake_quant.model, other.deploy.model).agree

    def test_inspecting_a_written_model_tells_something(self, source: Any, tmp_path: Path) -> None:
        if Capability.INSPECT not in self.framework().capabilities:
            pytest.skip("the framework does not inspect")
        output = self.save(source, tmp_path / "out" / "net")
        for artifact in output.artifacts:
            assert self.framework().inspect(artifact.model)


def _let_the_second_twin_fail(kind: type[Framework], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a framework fail as on a full disk, after the second twin's files are written."""
    write = kind.write

    def failing_write(framework: Framework, graph: Any, folder: Path, prefix: str, flavor: Flavor) -> Sequence[Path]:
        files = write(framework, graph, folder, prefix, flavor)
        if flavor is Flavor.DEPLOY:
            raise OutputWriteError("no space left on device")
        return files

    monkeypatch.setattr(kind, "write", failing_write)
