"""Files are replaced in one step, and nothing else about them or beside them changes."""

from __future__ import annotations

import os
import stat
import subprocess
import sys

import pytest

from twinquant.replacing import _stem, remove_abandoned_parts, replace_file, replacing


@pytest.fixture
def target(tmp_path):
    path = tmp_path / "record.txt"
    path.write_text("old")
    return path


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def killed_while_writing(target):
    """Start replacing a file in a process that ends without any cleaning up, as by SIGKILL."""
    code = f"""
import os
from pathlib import Path
from twinquant.replacing import _stem, remove_abandoned_parts, replace_file, replacing
with replacing(Path({str(target)!r})) as file:
    file.write(b"half")
    file.flush()
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9


def test_the_file_that_a_symbolic_link_leads_to_is_replaced(target, tmp_path):
    (tmp_path / "links").mkdir()
    link = tmp_path / "links" / "record.txt"
    link.symlink_to("../record.txt")
    replace_file(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"
    assert names_in(link.parent) == ["record.txt"]


def test_a_link_to_nothing_yet_stays_a_link(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "record.txt")
    replace_file(link, b"new")
    assert link.is_symlink()
    assert (tmp_path / "record.txt").read_bytes() == b"new"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o444])
def test_permissions_stay_as_they_are(target, mode):
    target.chmod(mode)
    replace_file(target, b"new")
    assert mode_of(target) == mode
    assert target.read_bytes() == b"new"


def test_a_new_file_has_the_permissions_that_the_process_gives(tmp_path):
    (tmp_path / "other").write_text("")
    replace_file(tmp_path / "record.txt", b"new")
    assert mode_of(tmp_path / "record.txt") == mode_of(tmp_path / "other")


def test_nobody_else_can_read_what_is_written_for_a_private_file(target):
    target.chmod(0o600)
    with replacing(target):
        (part,) = target.parent.glob(".*.part")
        assert mode_of(part) == 0o600


def test_an_error_leaves_the_old_content_and_nothing_beside_it(target):
    with pytest.raises(ZeroDivisionError), replacing(target) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert target.read_text() == "old"
    assert names_in(target.parent) == ["record.txt"]


@pytest.mark.parametrize("mode", [0o644, 0o444])
def test_what_killed_processes_left_is_gone_after_the_next_write(target, mode):
    target.chmod(mode)
    for _ in range(3):
        killed_while_writing(target)
        assert len(names_in(target.parent)) == 2
    replace_file(target, b"new")
    assert names_in(target.parent) == ["record.txt"]
    assert target.read_bytes() == b"new"


def test_what_a_killed_process_left_can_be_removed_without_writing(target):
    killed_while_writing(target)
    remove_abandoned_parts(target)
    assert names_in(target.parent) == ["record.txt"]


def test_what_another_process_is_writing_is_left_alone(target):
    with replacing(target) as first, replacing(target) as second:
        first.write(b"first")
        second.write(b"second")
        remove_abandoned_parts(target)
        replace_file(target, b"third")
        assert target.read_bytes() == b"third"
        assert len(list(target.parent.glob(".*.part"))) == 2
    assert target.read_bytes() == b"first"
    assert names_in(target.parent) == ["record.txt"]


def test_many_processes_that_write_and_are_killed_leave_one_whole_file(target):
    code = f"""
import os, sys
from pathlib import Path
from twinquant.replacing import _stem, remove_abandoned_parts, replace_file, replacing
while True:
    replace_file(Path({str(target)!r}), str(os.getpid()).encode() * 20_000)
"""
    processes = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) for _ in range(4)]
    try:
        for process in processes:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)  # none of them ends by itself, with an error
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    written = target.read_bytes()
    assert written in [str(process.pid).encode() * 20_000 for process in processes]
    replace_file(target, b"new")
    remove_abandoned_parts(target)
    assert names_in(target.parent) == ["record.txt"]


def test_a_name_as_long_as_names_can_be_is_written(tmp_path):
    path = tmp_path / ("r" * 255)
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_file_system_without_locks_is_written_to(target, monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def no_locks(*_):
        raise OSError(os.strerror(37))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with replacing(target) as first:
        first.write(b"first")
        replace_file(target, b"second")
    assert target.read_bytes() == b"first"
    assert names_in(target.parent) == ["record.txt"]


def test_parts_behind_a_gap_are_removed_too(tmp_path):
    target = tmp_path / "record.txt"
    (tmp_path / f".{_stem(target)}.2.part").write_bytes(b"left by a killed process")
    replace_file(target, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["record.txt"]


def test_a_pipe_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OSError, match="a device or a pipe"):
        replace_file(pipe, b"new")
    assert list(tmp_path.iterdir()) == [pipe] and pipe.is_fifo()
