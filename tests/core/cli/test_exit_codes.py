"""Exit codes, error paragraphs, and the options that all commands share."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from importlib.metadata import version

import pytest

import twinquant.cli.plan
from twinquant.cli import main


def test_an_error_is_one_paragraph_without_a_traceback(run, model, tmp_path):
    code, out, err = run("plan", model, tmp_path / "absent.txt")
    assert code == 1
    assert out == ""
    assert err.startswith("twinquant: error: ")
    assert "absent.txt" in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback_above_the_paragraph(run, model, tmp_path, place):
    command = ["plan", model, tmp_path / "absent.txt"]
    code, _, err = run("--debug", *command) if place == "before" else run(*command, "--debug")
    assert code == 1
    assert err.startswith("Traceback (most recent call last)")
    assert err.splitlines()[-1].startswith("twinquant: error: ")


def test_a_model_that_does_not_exist_is_the_users_error(run, registry, record, tmp_path):
    code, _, err = run("save", tmp_path / "absent.paper", record, tmp_path / "net")
    assert code == 1
    assert "absent.paper" in err


def test_an_operating_system_error_is_one_paragraph_too(run, registry, tmp_path):
    (tmp_path / "occupied" / "paper").mkdir(parents=True)
    code, _, err = run("demo", "--folder", tmp_path / "occupied")
    assert code == 1
    assert re.fullmatch(r"twinquant: error: .*occupied.*\n", err)


def test_a_defect_of_the_program_keeps_its_traceback(model, monkeypatch):
    def defective(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(twinquant.cli.plan, "open_model", defective)
    with pytest.raises(ZeroDivisionError):
        main(["plan", str(model)])


@pytest.mark.parametrize(
    "argv", [["save"], ["conjure"], ["plan", "m", "--save-type", "Both"], ["save", "m", "r", "p", "--save-type", "Tri"]]
)
def test_wrong_usage_returns_2_and_shows_the_usage(run, argv):
    code, out, err = run(*argv)
    assert code == 2
    assert out == ""
    assert err.startswith("usage: twinquant")


def test_no_command_returns_2_and_lists_the_commands(run):
    code, _, err = run()
    assert code == 2
    for command in ("save", "plan", "inspect", "verify", "check", "plugins", "demo"):
        assert f"\n  {command}" in err or f" {command} " in err


def test_help_returns_0_on_stdout(run):
    code, out, _ = run("verify", "--help")
    assert code == 0
    assert "--data FILE.npz" in out


def test_version_names_the_installed_release(run):
    assert run("--version") == (0, f"twinquant {version('twinquant-core')}\n", "")


def test_control_characters_in_messages_are_spelled_out(run, registry, tmp_path):
    code, _, err = run("plan", tmp_path / "red\x1b[31m.paper")
    assert code == 1
    assert "\x1b" not in err


def test_ctrl_c_returns_130_without_a_word(run, model, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(twinquant.cli.plan, "open_model", interrupted)
    assert run("plan", model) == (130, "", "")


def test_a_reader_that_goes_away_ends_the_command_quietly(tmp_path):
    record = tmp_path / "record.txt"
    layers = (
        f'record {{ key: "layer{n}" value {{ scale_d: 1 offset_d: 0 scale_w: 1 offset_w: 0 }} }}' for n in range(20_000)
    )
    record.write_text("\n".join(layers))
    command = [sys.executable, "-m", "twinquant", "inspect", str(record)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        process.stdout.close()
        err = process.stderr.read()
    assert (process.returncode, err) == (141, b"")


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_an_interrupt_from_the_keyboard_ends_the_process_with_130(tmp_path):
    fifo = tmp_path / "record.txt"
    os.mkfifo(fifo)
    program = "import twinquant.cli as c; print('ready', flush=True); raise SystemExit(c.main(['inspect', %r]))"
    command = [sys.executable, "-c", program % str(fifo)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.readline()
        time.sleep(0.5)  # until it waits for somebody to write into the pipe; an earlier interrupt ends it the same way
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")


@pytest.mark.parametrize(
    ("flags", "shown"), [([], {"warning"}), (["-v"], {"warning", "info"}), (["-vv"], {"warning", "info", "debug"})]
)
def test_verbose_shows_what_the_library_logs(flags, shown):
    program = (
        "import logging, sys, twinquant.cli, twinquant.cli.plugins as command\n"
        "log = logging.getLogger('twinquant.anything')\n"
        "def run(arguments, console):\n"
        "    for level in ('debug', 'info', 'warning'): getattr(log, level)('seen')\n"
        "    return 0\n"
        "command.run = run\n"
        "raise SystemExit(twinquant.cli.main(['plugins', *sys.argv[1:]]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program, *flags], capture_output=True, text=True, check=True)
    assert set(re.findall(r"^twinquant: (\w+): seen$", done.stderr, re.MULTILINE)) == shown


@pytest.mark.parametrize("option", ["--version", "--help"])
def test_help_and_version_answer_without_loading_anything_big(option):
    program = (
        "import sys, twinquant.cli; twinquant.cli.main(sys.argv[1:]);"
        "print(*{'numpy', 'pluggy', 'google', 'rich', 'onnx'}.intersection(sys.modules), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program, option], capture_output=True, text=True, check=True)
    assert done.stderr.split() == []


def test_the_module_can_be_run_like_the_command():
    done = subprocess.run([sys.executable, "-m", "twinquant", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"twinquant {version('twinquant-core')}\n"


@pytest.mark.parametrize("stream", [1, 2])
def test_a_closed_stream_does_not_keep_a_command_from_its_work(stream):
    command = [sys.executable, "-m", "twinquant", "plugins"]
    program = f"import os; os.close({stream}); os.execv({sys.executable!r}, {command})"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.returncode == 0
    assert "Traceback" not in result.stderr
