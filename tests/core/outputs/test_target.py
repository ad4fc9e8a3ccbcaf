from __future__ import annotations

import os
from pathlib import Path

import pytest

from twinquant.errors import ArgumentError, OutputPathError
from twinquant.outputs import Target, parse_save_path


@pytest.mark.parametrize(
    ("save_path", "folder", "prefix"),
    [
        ("d/p", "d", "p"),
        ("p", ".", "p"),
        ("/a/b/p", "/a/b", "p"),
        ("d/", "d", ""),
        ("", ".", ""),
        (".", ".", ""),
        ("..", "..", ""),
        ("./", ".", ""),
        ("d/..", "d/..", ""),
        ("~/p", "~", "p"),
        ("d/.hidden", "d", ".hidden"),
        ("d/two words", "d", "two words"),
        (Path("d/p"), "d", "p"),
        (Path(), ".", ""),
    ],
)
def test_a_save_path_means_a_folder_and_a_prefix(monkeypatch, tmp_path, save_path, folder, prefix):
    monkeypatch.chdir(tmp_path)
    assert parse_save_path(save_path) == Target(Path(folder), prefix)


def test_an_existing_folder_needs_no_trailing_slash(tmp_path):
    (tmp_path / "results").mkdir()
    assert parse_save_path(str(tmp_path / "results")) == Target(tmp_path / "results", "")
    assert parse_save_path(tmp_path / "results") == Target(tmp_path / "results", "")


def test_parsing_touches_no_file(tmp_path):
    parse_save_path(str(tmp_path / "new" / "deep" / "p"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("save_path", [None, 3, b"d/p", ["d", "p"]])
def test_what_is_no_path_is_an_argument_error_that_names_its_type(save_path):
    with pytest.raises(ArgumentError, match=f"save_path: must be a path .* got {type(save_path).__name__}"):
        parse_save_path(save_path)


def test_a_nul_character_is_an_error():
    with pytest.raises(OutputPathError, match="NUL"):
        parse_save_path("d/p\0q")


def test_a_prefix_that_is_too_long_is_an_error_that_says_how_long_it_may_be():
    with pytest.raises(OutputPathError, match="221 bytes long; at most 220"):
        parse_save_path("d/" + "x" * 221)


def test_the_length_of_a_prefix_counts_in_bytes():
    with pytest.raises(OutputPathError, match="240 bytes long"):
        parse_save_path("d/" + "é" * 120)


def test_the_longest_prefix_leaves_room_for_the_file_names(tmp_path):
    longest = "x" * 220
    assert parse_save_path(str(tmp_path / longest)).prefix == longest
    (tmp_path / f"{longest}_fake_quant_weights.caffemodel").touch()


def test_the_names_of_temporary_files_are_no_prefix():
    with pytest.raises(OutputPathError, match="choose another prefix"):
        parse_save_path("d/.twinquant-lock")


@pytest.mark.skipif(os.name == "nt", reason="Windows file names hold any UTF-16")
def test_a_name_that_cannot_be_encoded_is_an_error():
    with pytest.raises(OutputPathError, match="cannot be a file name"):
        parse_save_path("d/\ud800")
