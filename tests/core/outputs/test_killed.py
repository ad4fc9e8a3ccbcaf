"""Saves that are killed, interrupted or refused at every one of their file operations, and at random moments."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from twinquant.outputs import recover

pytestmark = pytest.mark.skipif("not hasattr(__import__('os'), 'fork')")

# Replaces, adds and deletes files: its weights differ from those of save 1.
FIRST, SECOND = 1, 2


def expected_names(toy, number: int) -> set[str]:
    weights = {f"{weight}_{word}.bin" for weight in toy.weights_of(number) for word in ("deploy", "fakequant")}
    return {"deploy_model.toy", "fake_quant_model.toy"} | weights


def saved_number(toy, folder: Path) -> int:
    """Return the number of the only save that all files of the folder are from."""
    names = {path.name for path in folder.iterdir()}
    (number,) = {toy.number_of(folder / name) for name in names}
    assert names == expected_names(toy, number)
    return number


def assert_every_file_is_whole(toy, folder: Path) -> None:
    for path in folder.iterdir():
        if not path.name.startswith(".twinquant-"):
            toy.number_of(path)


def test_a_save_killed_at_any_file_operation_leaves_the_old_or_the_new_files(toy, child, tmp_path):
    found = []
    for operation in range(1, 500):
        folder = tmp_path / str(operation)
        toy.save(folder, FIRST, weights=toy.weights_of(FIRST))
        outcome = child(do="save", folder=folder, number=SECOND, how="kill", operation=operation)
        assert_every_file_is_whole(toy, folder)
        assert {path.name for path in folder.iterdir()} >= expected_names(toy, FIRST) & expected_names(toy, SECOND)
        recover(folder)
        found.append(saved_number(toy, folder))
        if outcome == "undisturbed":
            break
    assert outcome == "undisturbed"
    # Old up to the moment at which the journal is there, new from then on.
    assert found == sorted(found)
    assert found.count(FIRST) > 10
    assert found.count(SECOND) > 10


def test_a_recovery_killed_at_any_file_operation_is_completed_by_the_next_one(toy, child, tmp_path):
    generator = random.Random(20)
    for attempt in range(60):
        folder = tmp_path / str(attempt)
        toy.save(folder, FIRST, weights=toy.weights_of(FIRST))
        child(do="save", folder=folder, number=SECOND, how="kill", operation=generator.randrange(20, 60))
        child(do="recover", folder=folder, how="kill", operation=generator.randrange(1, 25))
        assert_every_file_is_whole(toy, folder)
        recover(folder)
        assert saved_number(toy, folder) in (FIRST, SECOND)


def outcomes_of_failing(toy, child, tmp_path, snapshot, how):
    """Let a save fail at each of its file operations in turn; yield how it ended and what is in the folder then."""
    for operation in range(1, 500):
        folder = tmp_path / str(operation)
        toy.save(folder, FIRST, weights=toy.weights_of(FIRST))
        before = snapshot(folder)
        outcome = child(do="save", folder=folder, number=SECOND, how=how, operation=operation)
        if outcome == "undisturbed":
            return
        yield outcome, before, folder
    raise AssertionError("the save never came to its end")


def test_a_save_that_the_system_refuses_at_any_file_operation_leaves_everything_as_it_was(
    toy, child, tmp_path, snapshot
):
    refused = 0
    for outcome, before, folder in outcomes_of_failing(toy, child, tmp_path, snapshot, "refuse"):
        if outcome == "OutputWriteError":
            refused += 1
            assert snapshot(folder) == before
        else:
            # What failed was a precaution (a second name for an old file), or a clean-up: the next command repeats it.
            assert outcome == "done"
            recover(folder)
            assert saved_number(toy, folder) == SECOND
    assert refused > 30


def test_a_save_that_is_interrupted_at_any_file_operation_leaves_the_old_or_the_new_files(
    toy, child, tmp_path, snapshot
):
    found = []
    for outcome, before, folder in outcomes_of_failing(toy, child, tmp_path, snapshot, "interrupt"):
        assert outcome == "KeyboardInterrupt"
        recover(folder)
        found.append(saved_number(toy, folder))
        if found[-1] == FIRST:
            assert snapshot(folder) == before
    assert found == sorted(found)
    assert found.count(FIRST) > 30


@pytest.mark.heavy
def test_saves_killed_at_random_moments_never_leave_a_torn_or_mixed_result(toy, child, tmp_path):
    generator = random.Random(2)
    toy.save(tmp_path, 0, weights=toy.weights_of(0))
    last = 0
    progressed = interrupted = 0
    for _ in range(60):
        assert child(do="loop", folder=tmp_path, number=last + 1, kill_after=generator.uniform(0.001, 0.03)) == "killed"
        assert_every_file_is_whole(toy, tmp_path)
        interrupted += any(path.name.startswith(".twinquant-") for path in tmp_path.iterdir())
        recover(tmp_path)
        number = saved_number(toy, tmp_path)
        assert number >= last
        progressed += number > last
        last = number
    assert progressed > 20
    assert interrupted > 20
