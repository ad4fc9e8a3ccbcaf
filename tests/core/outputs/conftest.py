from __future__ import annotations

import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SAVER = Path(__file__).with_name("saver.py")


@pytest.fixture(scope="session")
def toy():
    """The functions of saver.py, in this process."""
    return SimpleNamespace(**runpy.run_path(str(SAVER)))


@pytest.fixture(scope="module")
def child():
    """Runs one command of saver.py in a process of its own and returns how it ended."""
    with subprocess.Popen([sys.executable, SAVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def run(**command) -> str:
            process.stdin.write(json.dumps(command | {"folder": str(command["folder"])}) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run
        process.stdin.close()


@pytest.fixture
def snapshot():
    """Returns every path below a folder with its content and mode."""

    def look(folder: Path) -> dict[str, object]:
        return {
            str(path.relative_to(folder)): (path.lstat().st_mode, path.read_bytes() if path.is_file() else None)
            for path in sorted(folder.rglob("*"))
        }

    return look
