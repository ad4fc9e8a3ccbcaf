from __future__ import annotations

import json
from pathlib import Path

import pytest

from twinquant.errors import OutputPathError
from twinquant.outputs import recover
from twinquant.outputs.journal import Area, Move, apply, is_plain_name, read_journal, write_journal


def leave_behind(folder: Path, journal: str) -> Path:
    """Make a folder look as if a save had been killed right after it wrote this journal."""
    staging = folder / ".twinquant-staging"
    for area in ("new", "old"):
        (staging / area).mkdir(parents=True)
    (staging / "journal.json").write_text(journal)
    return staging


def test_a_journal_reads_as_it_was_written(tmp_path):
    moves = [Move("a.bin", Area.NEW, Area.LIVE), Move("é\udcff b", Area.LIVE, Area.OLD)]
    write_journal(tmp_path / "journal", moves)
    assert read_journal(tmp_path / "journal") == moves
    assert [path.name for path in tmp_path.iterdir()] == ["journal"]


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/a", "../a", "a/", "a\0b", ".twinquant-lock"])
def test_names_that_lead_out_of_a_folder_are_not_plain(name):
    assert not is_plain_name(name)


@pytest.mark.parametrize("name", ["a", "a.onnx", ".hidden", "...", "two words", "é"])
def test_ordinary_names_are_plain(name):
    assert is_plain_name(name)


def test_moves_can_be_applied_twice(tmp_path):
    staging = leave_behind(tmp_path, "")
    (staging / "new" / "a").write_text("new")
    (tmp_path / "a").write_text("old")
    (tmp_path / "b").write_text("stale")
    moves = [Move("a", Area.NEW, Area.LIVE), Move("b", Area.LIVE, Area.OLD)]
    apply(moves, tmp_path, staging)
    apply(moves, tmp_path, staging)
    assert (tmp_path / "a").read_text() == "new"
    assert not (tmp_path / "b").exists()


def test_a_file_that_never_became_an_output_is_not_withdrawn(tmp_path):
    staging = leave_behind(tmp_path, "")
    (staging / "new" / "a").write_text("staged")
    (tmp_path / "a").write_text("somebody else's, made meanwhile")
    apply([Move("a", Area.LIVE, Area.NEW)], tmp_path, staging)
    assert (tmp_path / "a").read_text() == "somebody else's, made meanwhile"


@pytest.mark.parametrize(
    "journal",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 1}',
        '{"version": 2, "moves": []}',
        '{"version": 1, "moves": [["a", "new"]]}',
        '{"version": 1, "moves": [["a", "new", "elsewhere"]]}',
        '{"version": 1, "moves": [["a", "new", "old"]]}',
        '{"version": 1, "moves": [["a", "live", "live"]]}',
        '{"version": 1, "moves": [[1, "new", "live"]]}',
        '{"version": 1, "moves": [["../victim", "live", "old"]]}',
        '{"version": 1, "moves": [["/victim", "live", "old"]]}',
        '{"version": 1, "moves": [[".twinquant-lock", "live", "old"]]}',
        "[" * 100_000,
    ],
)
def test_a_journal_that_cannot_be_believed_is_an_error_that_says_what_to_remove(tmp_path, journal):
    folder = tmp_path / "folder"
    leave_behind(folder, journal)
    (tmp_path / "victim").write_text("precious")
    with pytest.raises(OutputPathError, match=r"remove the folder '.*\.twinquant-staging'"):
        recover(folder)
    assert (tmp_path / "victim").read_text() == "precious"


def test_one_bad_move_keeps_all_others_from_being_done(tmp_path):
    leave_behind(tmp_path, json.dumps({"version": 1, "moves": [["a", "live", "old"], ["../b", "live", "old"]]}))
    (tmp_path / "a").write_text("precious")
    with pytest.raises(OutputPathError):
        recover(tmp_path)
    assert (tmp_path / "a").read_text() == "precious"
