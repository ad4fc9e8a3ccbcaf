"""Saves made-up twins, in a process that can be killed, interrupted or refused at any of its file operations.

As a program it reads commands from standard input, runs each in a forked child, and answers with one line of JSON.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

from twinquant.errors import TwinQuantError
from twinquant.outputs import Artifact, DualOutput, Flavor, commit, recover, staging_folder
from twinquant.plan import QuantPlan

WORDS = {Flavor.FAKE_QUANT: "fakequant", Flavor.DEPLOY: "deploy"}


def write_file(path: Path, number: int, *, companions: Sequence[str] = (), lines: int = 20) -> Path:
    """Write a file whose every line tells the save it is from; it is whole only with its last line."""
    with path.open("w") as file:
        file.write(json.dumps(list(companions)) + "\n")
        for _ in range(lines):
            file.write(f"save {number}\n")
        file.write("end\n")
    return path


def number_of(path: Path) -> int:
    """Return the number of the save that a file is from; fail if it is not whole."""
    lines = path.read_text().splitlines()
    assert lines[-1] == "end", f"{path} is cut off"
    (number,) = {line.removeprefix("save ") for line in lines[1:-1]}
    return int(number)


def companions_of(model: Path) -> list[str]:
    with model.open() as file:
        return json.loads(file.readline())


def save(
    folder: Path,
    number: int,
    *,
    prefix: str = "",
    weights: Sequence[str] = ("w1", "w2"),
    flavors: Sequence[Flavor] = tuple(Flavor),
    inputs: Sequence[Path] = (),
    sidecars: Sequence[str] = (),
    lines: int = 20,
    durable: bool = False,
) -> DualOutput:
    """Save twins: a `.toy` model each, and a file for each weight."""
    artifacts = []
    stem = f"{prefix}_" if prefix else ""
    with staging_folder(folder) as staging:
        for flavor in flavors:
            names = [f"{weight}_{WORDS[flavor]}.bin" for weight in weights]
            model = write_file(staging / f"{stem}{flavor.value}_model.toy", number, companions=names, lines=lines)
            files = [write_file(staging / name, number, lines=lines) for name in names]
            artifacts.append(Artifact(flavor, (model, *files)))
        extra = tuple(write_file(staging / name, number) for name in sidecars)
        return commit(
            DualOutput(QuantPlan("toy", ()), tuple(artifacts), extra),
            staging,
            folder,
            inputs=inputs,
            companions=companions_of,
            companion_endings=(".bin",),
            durable=durable,
        )


def weights_of(number: int) -> list[str]:
    """Which weights the numbered save has: changing, so that saves replace, add and delete files."""
    return ["w1", "w2", f"w{3 + number % 3}"]


_FILE_OPERATIONS = frozenset(
    f"os.{name}" for name in ("rename", "remove", "rmdir", "mkdir", "chmod", "link", "symlink", "scandir", "listdir")
) | {"open", "fcntl.flock"}


def _stop_at(operation: int, how: str) -> list[str]:
    """Let the process meet its fate right before its n-th file operation; the returned list tells which that was."""
    position = count(1)
    reached: list[str] = []

    def hook(event: str, _arguments: tuple[Any, ...]) -> None:
        if event in _FILE_OPERATIONS and next(position) == operation:
            reached.append(event)
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "interrupt":
                raise KeyboardInterrupt
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    sys.addaudithook(hook)
    return reached


def _run(command: dict[str, Any]) -> str:
    folder = Path(command["folder"])
    reached = _stop_at(command["operation"], command["how"]) if "operation" in command else []
    try:
        if command["do"] == "recover":
            recover(folder)
        elif command["do"] == "loop":
            for number in count(command["number"]):
                save(folder, number, weights=weights_of(number))
        else:
            number = command["number"]
            save(folder, number, weights=weights_of(number), lines=command.get("lines", 20))
    except TwinQuantError as error:
        return type(error).__name__
    except KeyboardInterrupt:
        return "KeyboardInterrupt"
    return "done" if reached else "undisturbed"


def main() -> None:
    for line in sys.stdin:
        command = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            os.write(writer, _run(command).encode())
            os._exit(0)
        os.close(writer)
        if "kill_after" in command:
            time.sleep(command["kill_after"])
            os.kill(child, signal.SIGKILL)
        with os.fdopen(reader) as pipe:
            outcome = pipe.read() or "killed"
        os.waitpid(child, 0)
        sys.stdout.write(json.dumps(outcome) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
