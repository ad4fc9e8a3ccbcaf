"""A save that is killed, at whatever moment, leaves the twins of one save: the earlier or the new one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import twinquant
from twinquant.outputs import recover

SHIPPED = Path(find_spec("twinquant_onnx").origin).parent / "demo"
NAMES = ("digits_fake_quant_model.onnx", "digits_deploy_model.onnx")

SAVES_IN_TURN = """
import sys
import twinquant
model, one, other, save_path = sys.argv[1:]
print("ready", flush=True)
while True:
    for record in (one, other):
        twinquant.save_model(model, record, save_path)
"""


@pytest.mark.heavy
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no signal that cannot be caught")
def test_a_killed_save_of_a_network_leaves_both_twins_of_one_record(tmp_path):
    records = [tmp_path / "one.txt", tmp_path / "other.txt"]
    text = (SHIPPED / "digits_record.txt").read_text()
    records[0].write_text(text)
    records[1].write_text(text.replace("offset_d: -128", "offset_d: -127"))
    versions = []
    for record in records:
        output = twinquant.save_model(SHIPPED / "digits.onnx", record, tmp_path / record.stem / "digits")
        versions.append(tuple(output[artifact.flavor].model.read_bytes() for artifact in output.artifacts))
    assert versions[0][0] != versions[1][0]
    folder = tmp_path / "target"
    command = [sys.executable, "-c", SAVES_IN_TURN, SHIPPED / "digits.onnx", *records, folder / "digits"]
    random = np.random.default_rng(11)
    for _ in range(12):
        with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\n"
            time.sleep(0.1 + float(random.uniform(0, 0.2)))
            process.kill()

        for place, name in enumerate(NAMES):
            if (folder / name).exists():
                assert (folder / name).read_bytes() in (versions[0][place], versions[1][place]), f"{name} is torn"
        recover(folder)
        found = {path.name: path.read_bytes() for path in folder.iterdir()} if folder.exists() else {}
        assert tuple(found.get(name) for name in NAMES) in (*versions, (None, None))
        assert set(found) in (set(), set(NAMES))
