"""What a save may replace and delete: never an input, never a file of another model."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from twinquant.errors import OutputConflictError, OutputPathError
from twinquant.outputs import Artifact, DualOutput, Flavor, commit, staging_folder
from twinquant.plan import QuantPlan


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Inputs


def test_an_output_may_not_replace_an_input(toy, tmp_path, snapshot):
    toy.save(tmp_path, 1)
    before = snapshot(tmp_path)
    with pytest.raises(OutputPathError, match=r"deploy_model\.toy' would replace an input .* another path"):
        toy.save(tmp_path, 2, inputs=[tmp_path / "deploy_model.toy"])
    assert snapshot(tmp_path) == before


def test_an_input_is_recognized_through_links_and_detours(toy, tmp_path):
    folder = tmp_path / "folder"
    toy.save(folder, 1)
    (tmp_path / "symbolic").symlink_to(folder / "deploy_model.toy")
    (tmp_path / "hard").hardlink_to(folder / "w1_deploy.bin")
    for alias in (tmp_path / "symbolic", tmp_path / "hard", folder / ".." / "folder" / "fake_quant_model.toy"):
        with pytest.raises(OutputPathError, match="would replace an input"):
            toy.save(folder, 2, inputs=[alias])


def test_an_output_may_not_replace_a_link_that_leads_to_an_input(toy, tmp_path):
    (tmp_path / "record.txt").write_text("record")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "deploy_model.toy").symlink_to(tmp_path / "record.txt")
    with pytest.raises(OutputPathError, match="would replace an input"):
        toy.save(folder, 1, inputs=[tmp_path / "record.txt"])


def test_other_files_of_the_folder_may_be_inputs(toy, tmp_path):
    (tmp_path / "model.toy").write_text("[]\n")
    toy.save(tmp_path, 1, inputs=[tmp_path / "model.toy", tmp_path / "missing"])
    assert (tmp_path / "model.toy").read_text() == "[]\n"


# Ownership


def test_a_file_of_another_model_is_not_replaced_and_the_error_names_both(toy, tmp_path, snapshot):
    toy.save(tmp_path, 1, prefix="first", weights=["shared", "own"])
    before = snapshot(tmp_path)
    with pytest.raises(OutputConflictError) as raised:
        toy.save(tmp_path, 2, prefix="second", weights=["shared"])
    assert "'shared_deploy.bin'" in str(raised.value)
    assert "'first_deploy_model.toy'" in str(raised.value)
    assert "choose another folder" in str(raised.value)
    assert snapshot(tmp_path) == before


def test_two_models_without_a_common_file_share_a_folder(toy, tmp_path):
    toy.save(tmp_path, 1, prefix="first", weights=["a"])
    toy.save(tmp_path, 2, prefix="second", weights=["b"])
    assert toy.number_of(tmp_path / "a_deploy.bin") == 1
    assert toy.number_of(tmp_path / "b_deploy.bin") == 2
    assert len(names(tmp_path)) == 8


def test_the_way_out_of_a_conflict_is_to_remove_the_other_model(toy, tmp_path):
    toy.save(tmp_path, 1, prefix="first", weights=["shared"])
    for path in tmp_path.glob("first_*"):
        path.unlink()
    toy.save(tmp_path, 2, prefix="second", weights=["shared"])
    assert toy.number_of(tmp_path / "shared_deploy.bin") == 2


def test_a_file_that_no_model_refers_to_is_replaced(toy, tmp_path):
    toy.write_file(tmp_path / "w1_deploy.bin", 0)
    toy.save(tmp_path, 1)
    assert toy.number_of(tmp_path / "w1_deploy.bin") == 1


def test_a_sidecar_of_another_model_is_not_replaced(toy, tmp_path):
    toy.write_file(tmp_path / "other.toy", 0, companions=["quant.json"])
    toy.write_file(tmp_path / "quant.json", 0)
    with pytest.raises(OutputConflictError, match=r"'quant\.json'.*'other\.toy'"):
        toy.save(tmp_path, 1, sidecars=["quant.json"])


def test_only_files_that_look_like_models_are_asked_for_their_companions(toy, tmp_path):
    toy.save(tmp_path, 1)
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "folder.toy").mkdir()
    os.mkfifo(tmp_path / "pipe.toy")
    toy.save(tmp_path, 2)
    assert toy.number_of(tmp_path / "w1_deploy.bin") == 2


# Files that an earlier save left


def test_files_of_the_replaced_model_that_nothing_needs_any_more_are_deleted(toy, tmp_path, caplog):
    toy.save(tmp_path, 1, weights=["kept", "dropped"])
    caplog.set_level(logging.INFO, "twinquant")
    toy.save(tmp_path, 2, weights=["kept", "added"])
    models = {"deploy_model.toy", "fake_quant_model.toy"}
    assert names(tmp_path) == models | {
        f"{weight}_{word}.bin" for weight in ("kept", "added") for word in ("deploy", "fakequant")
    }
    assert f"deleting {tmp_path / 'dropped_deploy.bin'}" in caplog.text


def test_files_of_the_twin_that_is_not_saved_again_stay(toy, tmp_path):
    toy.save(tmp_path, 1, weights=["old"])
    toy.save(tmp_path, 2, weights=["new"], flavors=[Flavor.DEPLOY])
    assert names(tmp_path) == {
        "deploy_model.toy", "new_deploy.bin", "fake_quant_model.toy", "old_fakequant.bin",
    }  # fmt: skip


def test_files_of_other_prefixes_stay(toy, tmp_path):
    toy.save(tmp_path, 1, prefix="first", weights=["a"])
    toy.save(tmp_path, 2, prefix="second", weights=["b"])
    toy.save(tmp_path, 3, prefix="second", weights=["c"])
    assert {"a_deploy.bin", "c_deploy.bin"} < names(tmp_path)
    assert "b_deploy.bin" not in names(tmp_path)


def test_a_left_over_file_that_another_model_needs_stays(toy, tmp_path):
    toy.save(tmp_path, 1, weights=["dropped"])
    toy.write_file(tmp_path / "copy.toy", 0, companions=["dropped_deploy.bin"])
    toy.save(tmp_path, 2, weights=["new"])
    assert "dropped_deploy.bin" in names(tmp_path)
    assert "dropped_fakequant.bin" not in names(tmp_path)


def test_a_left_over_file_that_is_an_input_stays(toy, tmp_path):
    toy.save(tmp_path, 1, weights=["dropped"])
    toy.save(tmp_path, 2, weights=["new"], inputs=[tmp_path / "dropped_deploy.bin"])
    assert "dropped_deploy.bin" in names(tmp_path)
    assert "dropped_fakequant.bin" not in names(tmp_path)


@pytest.mark.parametrize(
    "companion", ["../outside.bin", "{absolute}", "sub/inside.bin", "other.toy", "link.bin", "sub"]
)
def test_whatever_an_old_model_refers_to_only_plain_files_of_its_folder_are_deleted(toy, tmp_path, companion):
    folder = tmp_path / "folder"
    (folder / "sub").mkdir(parents=True)
    for path in (tmp_path / "outside.bin", folder / "sub" / "inside.bin", folder / "other.toy"):
        toy.write_file(path, 0)
    (folder / "link.bin").symlink_to(tmp_path / "outside.bin")
    toy.write_file(folder / "gone.bin", 0)
    companion = companion.format(absolute=tmp_path / "outside.bin")
    toy.write_file(folder / "deploy_model.toy", 0, companions=[companion, "gone.bin"])
    toy.save(folder, 1)
    assert not (folder / "gone.bin").exists()
    assert (tmp_path / "outside.bin").exists()
    assert (folder / "sub" / "inside.bin").exists()
    assert {"other.toy", "link.bin", "sub"} < names(folder)


def test_a_save_that_fails_deletes_nothing(toy, tmp_path, snapshot):
    toy.save(tmp_path, 1, weights=["dropped"])
    before = snapshot(tmp_path)
    with pytest.raises(OutputPathError):
        toy.save(tmp_path, 2, weights=["new"], inputs=[tmp_path / "deploy_model.toy"])
    assert snapshot(tmp_path) == before


def test_a_left_over_file_that_the_new_model_still_refers_to_stays(toy, tmp_path):
    toy.write_file(tmp_path / "labels.txt", 0)
    toy.write_file(tmp_path / "deploy_model.toy", 0, companions=["labels.txt", "dropped.bin"])
    toy.write_file(tmp_path / "dropped.bin", 0)
    with staging_folder(tmp_path) as staging:
        model = toy.write_file(staging / "deploy_model.toy", 1, companions=["labels.txt"])
        output = DualOutput(QuantPlan("toy", ()), (Artifact(Flavor.DEPLOY, (model,)),))
        commit(output, staging, tmp_path, inputs=(), companions=toy.companions_of, companion_endings=(".bin",))
    assert names(tmp_path) == {"deploy_model.toy", "labels.txt"}


def test_an_input_that_has_vanished_meanwhile_is_still_no_output(toy, tmp_path):
    with pytest.raises(OutputPathError, match="would replace an input"):
        toy.save(tmp_path, 1, inputs=[tmp_path / "deploy_model.toy"])
    assert names(tmp_path) == set()


def test_a_file_that_no_save_writes_is_never_deleted(toy, tmp_path):
    toy.save(tmp_path, 1, weights=["kept"])
    model = tmp_path / "deploy_model.toy"
    header, *rest = model.read_text().splitlines(keepends=True)
    model.write_text(header.replace("kept_deploy.bin", "users_own.dat") + "".join(rest))
    (tmp_path / "users_own.dat").write_text("precious")
    toy.save(tmp_path, 2, weights=["kept"])
    assert (tmp_path / "users_own.dat").read_text() == "precious"
