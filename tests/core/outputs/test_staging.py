from __future__ import annotations

import json
import os
import stat
import timeit
from pathlib import Path

import pytest

from twinquant.errors import OutputPathError, OutputWriteError
from twinquant.outputs import recover, staging_folder


def contents(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_the_staging_folder_lies_in_the_target_folder_and_is_closed_to_strangers(tmp_path):
    with staging_folder(tmp_path) as staging:
        assert staging.relative_to(tmp_path).parts[0].startswith(".twinquant-")
        assert stat.S_IMODE(staging.parent.stat().st_mode) & 0o027 == 0
        assert list(staging.iterdir()) == []


def test_nothing_temporary_is_left_after_success(tmp_path):
    with staging_folder(tmp_path) as staging:
        (staging / "file").touch()
    assert contents(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_whatever_is_raised_passes_through_and_leaves_nothing(tmp_path, error):
    with pytest.raises(error), staging_folder(tmp_path / "new" / "deep") as staging:
        (staging / "file").touch()
        (staging / "folder").mkdir()
        raise error
    assert contents(tmp_path) == []


def test_only_folders_that_the_failed_save_created_are_removed(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError), staging_folder(tmp_path / "mine" / "a" / "b"):
        raise ValueError
    assert contents(tmp_path) == ["mine"]


def test_a_created_folder_in_which_somebody_else_put_a_file_stays(tmp_path):
    with pytest.raises(KeyError), staging_folder(tmp_path / "a" / "b"):
        (tmp_path / "a" / "note").touch()
        raise KeyError
    assert contents(tmp_path) == ["a", "a/note"]


def test_created_folders_stay_after_success(tmp_path):
    with staging_folder(tmp_path / "a" / "b"):
        pass
    assert contents(tmp_path) == ["a", "a/b"]


def test_a_file_in_the_way_of_a_folder_is_an_error_that_names_it(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OutputPathError, match="file"), staging_folder(tmp_path / "file" / "sub"):
        pass
    assert contents(tmp_path) == ["file"]


def test_a_dangling_link_in_the_way_of_a_folder_is_an_error(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputPathError, match="link"), staging_folder(tmp_path / "link"):
        pass


def test_a_folder_name_that_is_too_long_is_an_error(tmp_path):
    with pytest.raises(OutputPathError, match="shorter"), staging_folder(tmp_path / ("x" * 300)):
        pass


def test_a_link_to_a_folder_is_a_folder(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with staging_folder(tmp_path / "link") as staging:
        assert staging.resolve().parents[1] == (tmp_path / "real").resolve()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a file system that nobody can write to")
def test_a_folder_that_nobody_can_write_to_is_an_error_that_says_what_to_do():
    with pytest.raises(OutputWriteError, match="cannot write to the folder '/proc"), staging_folder(Path("/proc/new")):
        pass


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("ENOSPC", "free some space"),
        ("EDQUOT", "free some space"),
        ("EACCES", "you may write to"),
        ("EPERM", "you may write to"),
        ("EROFS", "you may write to"),
        ("EFBIG", "ulimit -f"),
        ("EIO", "check the folder and its disk"),
    ],
)
def test_a_refusal_of_the_system_says_its_reason_the_folder_and_what_to_do(tmp_path, code, advice):
    import errno

    number = getattr(errno, code)
    with pytest.raises(OutputWriteError) as raised, staging_folder(tmp_path):
        raise OSError(number, os.strerror(number), "weights.bin")
    assert os.strerror(number) in str(raised.value)
    assert str(tmp_path) in str(raised.value)
    assert "weights.bin" in str(raised.value)
    assert advice in str(raised.value)
    assert contents(tmp_path) == []


def test_an_os_error_without_a_number_keeps_its_text(tmp_path):
    with pytest.raises(OutputWriteError, match="the tape is torn"), staging_folder(tmp_path):
        raise OSError("the tape is torn")


def test_what_a_killed_save_staged_is_gone_before_the_next_one_starts(tmp_path):
    (tmp_path / ".twinquant-staging" / "new").mkdir(parents=True)
    (tmp_path / ".twinquant-staging" / "new" / "half").touch()
    with staging_folder(tmp_path) as staging:
        assert list(staging.iterdir()) == []
    assert contents(tmp_path) == []


def test_recovery_removes_staged_files_without_a_journal(tmp_path):
    (tmp_path / ".twinquant-staging" / "new").mkdir(parents=True)
    (tmp_path / ".twinquant-staging" / "new" / "half").touch()
    (tmp_path / ".twinquant-lock").touch()
    (tmp_path / "model").touch()
    recover(tmp_path)
    assert contents(tmp_path) == ["model"]


def test_recovery_removes_the_lock_file_of_a_killed_save(tmp_path):
    (tmp_path / ".twinquant-lock").touch()
    recover(tmp_path)
    assert contents(tmp_path) == []


def test_recovery_completes_the_moves_of_a_journal_and_says_so(tmp_path, caplog):
    staging = tmp_path / ".twinquant-staging"
    for area in ("new", "old"):
        (staging / area).mkdir(parents=True)
    (staging / "new" / "model").write_text("new")
    (tmp_path / "model").write_text("old")
    (tmp_path / "weight").write_text("stale")
    moves = [["model", "new", "live"], ["weight", "live", "old"]]
    (staging / "journal.json").write_text(json.dumps({"version": 1, "moves": moves}))
    recover(tmp_path)
    assert contents(tmp_path) == ["model"]
    assert (tmp_path / "model").read_text() == "new"
    assert f"completing a save that was interrupted in {tmp_path}" in caplog.text


def test_recovery_of_a_tidy_or_missing_folder_changes_nothing(tmp_path):
    (tmp_path / "model").touch()
    before = tmp_path.stat().st_mtime_ns
    recover(tmp_path)
    recover(str(tmp_path / "missing"))
    assert contents(tmp_path) == ["model"]
    assert tmp_path.stat().st_mtime_ns == before


def test_recovery_is_cheap_where_there_is_nothing_to_do(tmp_path):
    for number in range(500):
        (tmp_path / str(number)).touch()
    # 20 us a call on an ordinary machine; listing the folder would take 100 times as long.
    assert min(timeit.repeat(lambda: recover(tmp_path), number=20, repeat=20)) < 20 * 500e-6


@pytest.mark.parametrize("part", ["", "new", "old"])
def test_a_staging_folder_that_is_a_link_is_refused_and_not_followed(tmp_path, part):
    outside = tmp_path / "outside"
    folder = tmp_path / "folder"
    for area in ("new", "old"):
        (outside / area).mkdir(parents=True)
    (outside / "secret").touch()
    folder.mkdir()
    journal = json.dumps({"version": 1, "moves": [["secret", "new", "live"]]})
    (outside / "journal.json").write_text(journal)
    staging = folder / ".twinquant-staging"
    if part:
        staging.mkdir()
        (staging / "journal.json").write_text(journal)
        (staging / part).symlink_to(outside)
    else:
        staging.symlink_to(outside)
    with pytest.raises(OutputPathError, match="remove it"):
        recover(folder)
    with pytest.raises(OutputPathError, match="remove it"), staging_folder(folder):
        pass
    assert (outside / "secret").exists()
    assert not (folder / "secret").exists()


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / ".twinquant-lock").symlink_to(tmp_path / "created elsewhere")
    with pytest.raises(OutputPathError), staging_folder(folder):
        pass
    assert not (tmp_path / "created elsewhere").exists()


def test_a_reader_that_may_not_write_is_not_stopped_by_a_leftover_without_a_journal(tmp_path, monkeypatch):
    (tmp_path / ".twinquant-staging").mkdir()

    def refuse(*_arguments, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    recover(tmp_path)
    assert contents(tmp_path) == [".twinquant-staging"]


def test_a_reader_that_may_not_write_learns_that_the_files_are_of_two_saves(tmp_path, monkeypatch):
    (tmp_path / ".twinquant-staging").mkdir()
    (tmp_path / ".twinquant-staging" / "journal.json").touch()

    def refuse(*_arguments, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OutputWriteError, match=r"killed halfway .*Permission denied.*two saves"):
        recover(tmp_path)
