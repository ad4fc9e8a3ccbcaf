"""Saves into one folder at the same time."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from twinquant.outputs import recover, staging_folder
from twinquant.outputs.lock import locked_folder

SAVER = Path(__file__).with_name("saver.py")

SAVE_REPEATEDLY = """
import runpy, sys
from pathlib import Path
toy = runpy.run_path(sys.argv[1])
for number in range(int(sys.argv[3]), int(sys.argv[4])):
    toy["save"](Path(sys.argv[2]), number, weights=toy["weights_of"](number))
"""


def assert_one_save(toy, folder: Path) -> None:
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".twinquant-")}
    (number,) = {toy.number_of(folder / name) for name in names}
    weights = {f"{weight}_{word}.bin" for weight in toy.weights_of(number) for word in ("deploy", "fakequant")}
    assert names == weights | {"deploy_model.toy", "fake_quant_model.toy"}


def test_processes_that_save_into_one_folder_never_mix_their_files(toy, tmp_path):
    toy.save(tmp_path, 0, weights=toy.weights_of(0))
    processes = [
        subprocess.Popen([sys.executable, "-c", SAVE_REPEATEDLY, SAVER, tmp_path, str(first), str(first + 60)])
        for first in (1000, 2000)
    ]
    seen = set()
    while any(process.poll() is None for process in processes):
        with locked_folder(tmp_path):
            assert_one_save(toy, tmp_path)
            seen.add(toy.number_of(tmp_path / "deploy_model.toy"))
        time.sleep(0.001)
    assert [process.returncode for process in processes] == [0, 0]
    assert_one_save(toy, tmp_path)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".twinquant-")]
    assert len(seen) > 5


def test_threads_that_save_into_one_folder_never_mix_their_files(toy, tmp_path):
    problems = []

    def save_some(first: int) -> None:
        try:
            for number in range(first, first + 10):
                toy.save(tmp_path / "new", number, weights=toy.weights_of(number))
        except Exception as error:  # noqa: BLE001 - a thread cannot raise into the test
            problems.append(error)

    threads = [threading.Thread(target=save_some, args=(100 * number,)) for number in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert_one_save(toy, tmp_path / "new")
    assert not [path for path in (tmp_path / "new").iterdir() if path.name.startswith(".twinquant-")]


def test_a_save_waits_for_another_one_and_says_so(tmp_path, caplog):
    caplog.set_level(logging.INFO, "twinquant")
    events = []

    def second() -> None:
        with staging_folder(tmp_path):
            events.append("second")

    with staging_folder(tmp_path):
        thread = threading.Thread(target=second)
        thread.start()
        while "waiting" not in caplog.text:
            time.sleep(0.001)
        events.append("first")
    thread.join()
    assert events == ["first", "second"]
    assert f"waiting for another save to finish in {tmp_path}" in caplog.text


def test_recovery_leaves_the_staging_folder_of_a_running_save_alone(tmp_path, caplog):
    caplog.set_level(logging.INFO, "twinquant")
    with staging_folder(tmp_path) as staging:
        (staging / "file").touch()
        thread = threading.Thread(target=recover, args=(tmp_path,))
        thread.start()
        while "waiting" not in caplog.text:
            time.sleep(0.001)
        assert (staging / "file").exists()
    thread.join()
    assert list(tmp_path.iterdir()) == []


def test_a_save_that_waited_for_a_failing_one_creates_the_folder_again(tmp_path, caplog):
    caplog.set_level(logging.INFO, "twinquant")
    folder = tmp_path / "new" / "deep"

    def second() -> None:
        with staging_folder(folder):
            (folder / "result").touch()

    thread = threading.Thread(target=second)
    with pytest.raises(KeyError), staging_folder(folder):
        thread.start()
        while "waiting" not in caplog.text:
            time.sleep(0.001)
        raise KeyError
    thread.join()
    assert (folder / "result").exists()


def test_the_lock_is_free_again_after_an_interruption_while_waiting(tmp_path, monkeypatch):
    def interrupt(*_arguments):
        raise KeyboardInterrupt

    with locked_folder(tmp_path):
        monkeypatch.setattr("twinquant.outputs.lock._wait_lock", interrupt)
        with pytest.raises(KeyboardInterrupt), locked_folder(tmp_path):
            pass
    with locked_folder(tmp_path):
        assert [path.name for path in tmp_path.iterdir()] == [".twinquant-lock"]
    assert list(tmp_path.iterdir()) == []


def test_a_working_directory_that_was_deleted_is_an_error_not_an_endless_loop(tmp_path, monkeypatch):
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(OSError, match="No such file"), locked_folder(Path(), create=True):
        pass
    monkeypatch.chdir(tmp_path)
