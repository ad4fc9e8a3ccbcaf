"""Several processes, and processes that are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import twinquant
from twinquant.errors import CalibrationError, DataError

pytestmark = pytest.mark.heavy


@pytest.mark.parametrize("algorithm", ["ifmr", "hfmg"])
@pytest.mark.parametrize("make", [np.asarray, iter], ids=["array", "generator"])
def test_two_workers_give_the_bytes_of_one_process(network, network_file, tmp_path, algorithm, make):
    batches = network.x.reshape(12, 2, 3, 12, 12)
    config = {"activation_algorithm": algorithm, "layers": {"conv2": {"dmq_migration_strength": 0.5}}}
    written = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        twinquant.quantize(network_file, make(batches), folder / "net", config=config, batch_num=12, workers=workers)
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert written[0] == written[1]


def test_an_error_in_a_worker_comes_back_as_it_is(network, network_file, tmp_path):
    batches = network.x.reshape(12, 2, 3, 12, 12).copy()
    batches[7, 0, 0, 0, 0] = np.nan
    with pytest.raises(CalibrationError, match="layer 'conv1', batch 8: the activation holds 1 NaN"):
        twinquant.calibrate(network_file, batches, tmp_path / "record.txt", batch_num=12, workers=2)
    assert not (tmp_path / "record.txt").exists()


def test_the_progress_of_workers_moves_with_every_part_of_a_pass(network, network_file, tmp_path):
    told = []
    twinquant.calibrate(
        network_file,
        [network.x] * 12,
        tmp_path / "record.txt",
        config={"activation_algorithm": "minmax"},
        batch_num=12,
        workers=2,
        progress=lambda words, _: told.append(words),
    )
    assert len([words for words in told if "pass 1, batch" in words]) == 12


def test_workers_need_a_model_in_a_file(network, tmp_path):
    with pytest.raises(DataError, match="workers need a model in a file"):
        twinquant.calibrate(network.model, [network.x], tmp_path / "record.txt", batch_num=1, workers=2)


def test_workers_are_told_of_data_that_ends_early(network, network_file, tmp_path):
    batches = network.x.reshape(12, 2, 3, 12, 12)
    with pytest.raises(DataError, match="only 12 batches, but calibration wants 13"):
        twinquant.calibrate(network_file, iter(batches), tmp_path / "record.txt", batch_num=13, workers=2)


def test_a_dask_cluster_of_two_workers_gives_the_bytes_of_one_process(network, network_file, tmp_path):
    distributed = pytest.importorskip("distributed")
    batches = network.x.reshape(12, 2, 3, 12, 12)
    twinquant.calibrate(network_file, batches, tmp_path / "one", batch_num=12)
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": True, "dashboard_address": None}
    with (
        distributed.LocalCluster(**options) as cluster,
        distributed.Client(cluster) as client,
        client.get_executor(pure=False) as executor,
    ):
        twinquant.calibrate(network_file, batches, tmp_path / "dask", batch_num=12, workers=executor)
    assert (tmp_path / "dask").read_bytes() == (tmp_path / "one").read_bytes()


SLOW_CALIBRATION = """
import sys, time
import numpy as np
import twinquant
from twinquant.calibration import resume

resume.SAVE_SECONDS = 0.0
model, data, record = sys.argv[1:]
twinquant.calibrate(model, data, record, config={"activation_algorithm": "hfmg"}, batch_num=12,
                    progress=lambda words, _: (print(words, flush=True), time.sleep(0.05)))
"""


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
@pytest.mark.parametrize("until", ["pass 1, batch 5 of", "pass 2, batch 7 of"])
def test_a_killed_calibration_goes_on_and_ends_with_the_same_bytes(network, network_file, tmp_path, until):
    np.savez(tmp_path / "data.npz", x=network.x)
    twinquant.calibrate(
        network_file,
        tmp_path / "data.npz",
        tmp_path / "expected",
        config={"activation_algorithm": "hfmg"},
        batch_num=12,
    )
    command = [sys.executable, "-c", SLOW_CALIBRATION, network_file, tmp_path / "data.npz", tmp_path / "record.txt"]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        for line in process.stdout:
            assert time.monotonic() < deadline
            if until in line:
                process.send_signal(signal.SIGKILL)
                break
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "record.txt").exists()
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=True)
    first = next(line for line in done.stdout.splitlines() if "pass" in line)
    assert until.split(",")[0] in first
    assert "batch 1 of" not in first
    assert (tmp_path / "record.txt").read_bytes() == (tmp_path / "expected").read_bytes()
    assert not (tmp_path / "record.txt.unfinished").exists()
