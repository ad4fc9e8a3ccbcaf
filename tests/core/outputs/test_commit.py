from __future__ import annotations

import errno
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from twinquant.errors import BrokenPluginError, OutputPathError, OutputWriteError
from twinquant.outputs import Artifact, DualOutput, Flavor, commit, recover, staging_folder
from twinquant.plan import QuantPlan

SAVER = Path(__file__).with_name("saver.py")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def commit_files(folder: Path, *files: str, write: dict[str, str], inputs=()) -> DualOutput:
    """Write files into a staging folder, declare some as the deploy twin's, commit."""
    with staging_folder(folder) as staging:
        for name, text in write.items():
            (staging / name).write_text(text)
        artifact = Artifact(Flavor.DEPLOY, tuple(staging / name for name in files))
        output = DualOutput(QuantPlan("toy", ()), (artifact,))
        return commit(output, staging, folder, inputs=inputs, companions=lambda _: ())


# Names, modes, replacing


def test_a_save_returns_the_final_paths_in_the_order_of_the_plugin(toy, tmp_path):
    output = toy.save(tmp_path, 1, prefix="net", weights=["a", "b"], sidecars=["net_quant.json"])
    assert output.deploy.files == tuple(tmp_path / n for n in ("net_deploy_model.toy", "a_deploy.bin", "b_deploy.bin"))
    assert output.fake_quant.model == tmp_path / "net_fake_quant_model.toy"
    assert output.sidecars == (tmp_path / "net_quant.json",)
    assert all(path.is_file() for artifact in output.artifacts for path in artifact.files)
    assert (tmp_path / "net_quant.json").is_file()


def test_a_twin_that_was_not_asked_for_is_not_there(toy, tmp_path):
    output = toy.save(tmp_path, 1, flavors=[Flavor.DEPLOY])
    assert output.deploy.model.exists()
    with pytest.raises(KeyError, match="fake_quant"):
        _ = output.fake_quant


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_every_file_has_mode_0640_whatever_the_umask(toy, tmp_path, umask):
    before = os.umask(umask)
    try:
        toy.save(tmp_path / "new", 1, sidecars=["quant.json"])
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "new").iterdir()}
    assert set(modes.values()) == {0o640}
    assert len(modes) == 7


def test_existing_outputs_are_replaced_and_the_log_says_which(toy, tmp_path, caplog):
    toy.save(tmp_path, 1)
    caplog.set_level(logging.INFO, "twinquant")
    toy.save(tmp_path, 2)
    assert {toy.number_of(path) for path in tmp_path.iterdir()} == {2}
    assert f"replacing {tmp_path / 'deploy_model.toy'}" in caplog.text
    assert f"replacing {tmp_path / 'w1_fakequant.bin'}" in caplog.text


def test_a_first_save_replaces_nothing(toy, tmp_path, caplog):
    caplog.set_level(logging.INFO, "twinquant")
    toy.save(tmp_path, 1)
    assert "replacing" not in caplog.text


def test_a_replaced_file_gets_mode_0640_even_if_the_old_one_had_another(toy, tmp_path):
    toy.save(tmp_path, 1)
    (tmp_path / "deploy_model.toy").chmod(0o400)
    toy.save(tmp_path, 2)
    assert stat.S_IMODE((tmp_path / "deploy_model.toy").stat().st_mode) == 0o640


def test_files_are_renamed_not_copied(tmp_path):
    with staging_folder(tmp_path) as staging:
        (staging / "model").write_text("m")
        inode = (staging / "model").stat().st_ino
        output = DualOutput(QuantPlan("toy", ()), (Artifact(Flavor.DEPLOY, (staging / "model",)),))
        commit(output, staging, tmp_path, inputs=(), companions=lambda _: ())
    assert (tmp_path / "model").stat().st_ino == inode


def test_a_durable_save_writes_the_same_files(toy, tmp_path, monkeypatch):
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), real(descriptor)))
    toy.save(tmp_path, 1, durable=True)
    assert {path.stat().st_ino for path in tmp_path.iterdir()} <= set(synced)
    assert tmp_path.stat().st_ino in synced


def test_an_ordinary_save_does_not_wait_for_the_disk(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda _: pytest.fail("fsync was called"))
    toy.save(tmp_path, 1)
    assert "deploy_model.toy" in names(tmp_path)


# Links and folders in the way


def test_a_link_in_place_of_an_output_is_replaced_not_followed(toy, tmp_path):
    (tmp_path / "precious").write_text("precious")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "deploy_model.toy").symlink_to(tmp_path / "precious")
    toy.save(folder, 1)
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (folder / "deploy_model.toy").is_symlink()
    assert toy.number_of(folder / "deploy_model.toy") == 1


def test_a_dangling_link_in_place_of_an_output_is_replaced(toy, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "w1_deploy.bin").symlink_to(tmp_path / "nowhere")
    toy.save(folder, 1)
    assert toy.number_of(folder / "w1_deploy.bin") == 1
    assert not (tmp_path / "nowhere").exists()


def test_a_hard_link_to_an_output_keeps_the_old_content(toy, tmp_path):
    toy.save(tmp_path / "folder", 1)
    (tmp_path / "kept").hardlink_to(tmp_path / "folder" / "deploy_model.toy")
    toy.save(tmp_path / "folder", 2)
    assert toy.number_of(tmp_path / "kept") == 1


def test_a_folder_in_place_of_an_output_is_an_error_and_nothing_changes(toy, tmp_path, snapshot):
    (tmp_path / "deploy_model.toy").mkdir()
    before = snapshot(tmp_path)
    with pytest.raises(OutputPathError, match=r"deploy_model\.toy' exists as a folder"):
        toy.save(tmp_path, 1)
    assert snapshot(tmp_path) == before


# What a plugin may do wrong


@pytest.mark.parametrize(
    ("files", "write", "problem"),
    [
        ([], {}, "wrote no file for the deploy model"),
        (["m"], {}, "declared the file 'm', but did not write it"),
        (["m"], {"m": ""}, "wrote an empty model file 'm'"),
        (["m"], {"m": "x", "extra": "x"}, "wrote the file 'extra', but did not declare it"),
        (["m", "m"], {"m": "x"}, "wrote two files called 'm'"),
        (["../m"], {"m": "x"}, "which is not in"),
        (["sub/m"], {"m": "x"}, "which is not in"),
        (["/etc/hostname"], {}, "which is not in"),
        ([".twinquant-lock"], {".twinquant-lock": "x"}, "which is not in"),
    ],
)
def test_a_plugin_that_does_not_write_what_it_declares_is_named_as_broken(tmp_path, files, write, problem):
    with pytest.raises(BrokenPluginError, match=problem):
        commit_files(tmp_path / "new", *files, write=write)
    assert names(tmp_path) == set()


def test_a_plugin_may_write_empty_files_beside_the_model(tmp_path):
    output = commit_files(tmp_path, "m", "empty.bin", write={"m": "x", "empty.bin": ""})
    assert output.deploy.files[1].stat().st_size == 0


@pytest.mark.parametrize("kind", ["symbolic", "hard", "folder"])
def test_a_staged_link_is_refused(tmp_path, kind):
    (tmp_path / "input").write_text("x")
    folder = tmp_path / "folder"
    mode = (tmp_path / "input").stat().st_mode
    with pytest.raises(BrokenPluginError, match="as a link or a folder"), staging_folder(folder) as staging:
        if kind == "symbolic":
            (staging / "m").symlink_to(tmp_path / "input")
        elif kind == "hard":
            (staging / "m").hardlink_to(tmp_path / "input")
        else:
            (staging / "m").mkdir()
        output = DualOutput(QuantPlan("toy", ()), (Artifact(Flavor.DEPLOY, (staging / "m",)),))
        commit(output, staging, folder, inputs=(), companions=lambda _: ())
    assert not folder.exists()
    assert (tmp_path / "input").stat().st_mode == mode


# Refusals of the system


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes")
def test_a_file_that_may_not_grow_is_an_error_that_leaves_nothing_half_written(toy, tmp_path, snapshot):
    toy.save(tmp_path, 1)
    before = snapshot(tmp_path)
    program = (
        "import resource, runpy, sys; from pathlib import Path\n"
        "from twinquant.errors import OutputWriteError\n"
        "toy = runpy.run_path(sys.argv[1])\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))\n"
        "try:\n    toy['save'](Path(sys.argv[2]), 2, lines=100_000)\n"
        "except OutputWriteError as error:\n    sys.exit(str(error))\n"
    )
    result = subprocess.run([sys.executable, "-c", program, SAVER, tmp_path], capture_output=True, text=True)
    assert "File too large" in result.stderr
    assert "ulimit -f" in result.stderr
    assert "Traceback" not in result.stderr
    assert snapshot(tmp_path) == before


def refuse_the_move_of(monkeypatch, name: str, *, hard_links: bool) -> None:
    real = Path.replace

    def replace(self, target):
        if self.name == name and self.parent.name == "new":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self))
        return real(self, target)

    def no_links(self, target):
        raise OSError(errno.EPERM, "no hard links on this file system")

    monkeypatch.setattr(Path, "replace", replace)
    if not hard_links:
        monkeypatch.setattr(Path, "hardlink_to", no_links)


def test_a_move_that_fails_halfway_is_taken_back(toy, tmp_path, snapshot, monkeypatch):
    (tmp_path / "precious").write_text("precious")
    folder = tmp_path / "folder"
    toy.save(folder, 1, weights=["a", "dropped"])
    (folder / "a_fakequant.bin").unlink()
    (folder / "a_fakequant.bin").symlink_to(tmp_path / "precious")
    before = snapshot(folder)
    refuse_the_move_of(monkeypatch, "fake_quant_model.toy", hard_links=True)
    with pytest.raises(OutputWriteError, match=r"No space left.*earlier outputs are unchanged"):
        toy.save(folder, 2, weights=["a", "added"])
    assert snapshot(folder) == before
    assert (folder / "a_fakequant.bin").is_symlink()
    assert (tmp_path / "precious").read_text() == "precious"


def test_without_hard_links_a_first_move_that_fails_changes_nothing(toy, tmp_path, snapshot, monkeypatch):
    toy.save(tmp_path, 1)
    before = snapshot(tmp_path)
    refuse_the_move_of(monkeypatch, "w1_fakequant.bin", hard_links=False)
    with pytest.raises(OutputWriteError, match="earlier outputs are unchanged"):
        toy.save(tmp_path, 2)
    assert snapshot(tmp_path) == before


def test_without_hard_links_a_save_that_stops_halfway_says_so_and_is_completed_later(toy, tmp_path, monkeypatch):
    toy.save(tmp_path, 1)
    with monkeypatch.context() as patch:
        refuse_the_move_of(patch, "fake_quant_model.toy", hard_links=False)
        with pytest.raises(OutputWriteError, match=r"stopped halfway.*save or verify in that folder again"):
            toy.save(tmp_path, 2)
    recover(tmp_path)
    assert {toy.number_of(path) for path in tmp_path.iterdir()} == {2}
    assert len(names(tmp_path)) == 6


def test_without_hard_links_a_save_replaces_as_usual(toy, tmp_path, monkeypatch):
    toy.save(tmp_path, 1)
    refuse_the_move_of(monkeypatch, "", hard_links=False)
    toy.save(tmp_path, 2)
    assert {toy.number_of(path) for path in tmp_path.iterdir()} == {2}
