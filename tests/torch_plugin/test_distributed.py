"""Two processes that calibrate together find what one process finds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from twinquant.calibration.station import Station
from twinquant_torch.distributed import gather, is_writer, on_writer, share_of, world

BEGINNING = """
import atexit
import sys
import numpy as np
import torch
import torch.distributed as dist

folder, rank, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
atexit.register(dist.destroy_process_group)  # also after an error: gloo's threads abort a process that ends without
"""


def run_together(folder: Path, body: str, size: int = 2, expected: int = 0) -> list[str]:
    """Run a script in several processes with a process group; return what each printed."""
    script = folder / "script.py"
    script.write_text(BEGINNING + body)
    environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "ignore"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(folder), str(rank), str(size)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(size)
    ]
    results = []
    try:
        for process in processes:
            out, err = process.communicate(timeout=240)
            results.append((process.returncode, out, err))
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [code for code, _, _ in results] == [expected] * size, results
    return [err if expected else out for _, out, err in results]


def test_one_process_is_a_world_of_its_own_and_writes():
    assert world() == (0, 1)
    assert is_writer()
    assert share_of(7) == 7
    assert gather("mine") == ["mine"]
    written = []
    on_writer(lambda: written.append(1))
    assert written == [1]


WATCHES = """
from twinquant.calibration.options import ObserverOptions
from twinquant.calibration.station import Station
from twinquant.calibration.watches import Watch
from twinquant.registry import Tap
from twinquant_torch.distributed import merge_stations

algorithms = ("ifmr", "hfmg", "minmax", "percentile", "entropy", "mse")
watches = [Watch(Tap(name), (name,), ObserverOptions(algorithm=name)) for name in algorithms]
watches.append(Watch(Tap("balanced"), ("balanced",), ObserverOptions(), migration_strength=0.5, channel_axis=1))
batches = np.random.default_rng(0).standard_normal((5, 4, 3, 50)).astype(np.float32)
maxima = lambda layer: np.array([0.5, 1, 2], np.float32)
"""

MERGING = (
    WATCHES
    + """
stations = [Station(watch) for watch in watches]
while not all(station.finished for station in stations):
    active = [station for station in stations if not station.finished]
    for batch in batches[3 * rank : 3 * rank + 3]:
        for station in active:
            station.observe(batch)
    merge_stations(active)
    for station in active:
        station.end_pass(maxima)
for station in stations:
    print(station.watch.label, station.factors(), station.balance)
"""
)


def factors_of_one_process() -> str:
    """Return the same lines, found without any group."""
    scope: dict[str, object] = {"np": np}
    exec(WATCHES, scope)
    stations = [Station(watch) for watch in scope["watches"]]
    while not all(station.finished for station in stations):
        for station in [station for station in stations if not station.finished]:
            for batch in scope["batches"]:
                station.observe(batch)
            station.end_pass(scope["maxima"])
    return "".join(f"{station.watch.label} {station.factors()} {station.balance}\n" for station in stations)


@pytest.mark.heavy
@pytest.mark.parametrize("size", [2, 3])  # of three processes one sees no batch at all
def test_every_process_ends_with_the_factors_of_one_process(tmp_path, size):
    assert run_together(tmp_path, MERGING, size) == [factors_of_one_process()] * size


@pytest.mark.heavy
def test_processes_that_watch_different_layers_are_told_so(tmp_path):
    body = WATCHES + "merge_stations([Station(watch) for watch in watches[: 3 + rank]])"
    for message in run_together(tmp_path, body, expected=1):
        assert "need the same model and the same configuration" in message


@pytest.mark.heavy
def test_ranks_share_the_batches_and_only_rank_0_writes(tmp_path):
    body = """
from pathlib import Path
from twinquant_torch.distributed import gather, is_writer, on_writer, share_of, world
assert world() == (rank, size)
assert is_writer() == (rank == 0)
assert gather((rank, None)) == [(0, None), (1, None)]
assert gather(None) == [None, None]
target = Path(folder, "written")
on_writer(lambda: target.write_text(str(rank)))
print(share_of(5), target.read_text())
"""
    assert run_together(tmp_path, body) == ["3 0\n", "2 0\n"]


@pytest.mark.heavy
def test_an_error_of_the_writer_is_everybody_s(tmp_path):
    body = """
from twinquant.errors import OutputPathError
from twinquant_torch.distributed import on_writer
def write():
    raise OutputPathError("the folder is full")
on_writer(write)
"""
    for message in run_together(tmp_path, body, expected=1):
        assert "OutputPathError: the folder is full" in message


@pytest.mark.heavy
def test_more_processes_than_batches_are_refused(tmp_path):
    body = """
from twinquant_torch.distributed import share_of
share_of(1)
"""
    for message in run_together(tmp_path, body, expected=1):
        assert "batch_num is 1, but 2 processes" in message


@pytest.mark.heavy
def test_torchrun_without_a_process_group_is_explained(tmp_path):
    script = tmp_path / "script.py"
    script.write_text("from twinquant_torch.distributed import world\nworld()\n")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launcher, str(script)], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 1
    assert "call torch.distributed.init_process_group()" in done.stderr


FLOW = """
import os
from pathlib import Path
import torch
import twinquant_torch.amct as amct
from torch import nn

torch.manual_seed(0)
layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 6, 3), nn.Flatten()]
model = nn.Sequential(*layers, nn.Linear(96, 4)).eval()
generator = torch.Generator().manual_seed(1)
batches = [torch.randn(2, 3, 8, 8, generator=generator) for _ in range(6)]

def calibrate(folder, model, batches, write_config):
    folder = Path(folder)
    config, record = folder / "config.json", folder / "record.txt"
    definition = folder / "settings.cfg"
    if write_config:
        definition.write_text(SETTINGS)
        amct.create_quant_config(config, model, batches[0], batch_num=6, config_defination=definition)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
    calibrated = amct.quantize_model(config, folder / "modified.onnx", record, model, batches[0])
    for batch in batches:
        calibrated(batch)
    return record
"""

SETTINGS = {
    "ifmr": "batch_num: 6",
    "hfmg": "batch_num: 6\ncommon_config { hfmg_quantize { num_of_bins: 4096 } }",
}

SHARDED = """
import gc
import torch.distributed as dist
if not dist.is_initialized():
    dist.init_process_group("gloo")
rank, size = dist.get_rank(), dist.get_world_size()
if WRAP:
    model = torch.nn.parallel.DistributedDataParallel(model)
record = calibrate(FOLDER, model, batches[rank::size], rank == 0)
print(record.read_text())
# Now and then gloo's threads abort a process whose group is destroyed while a model still refers to it (torch 2.13).
del model
gc.collect()
dist.barrier()
"""


def record_of_one_process(folder: Path, algorithm: str) -> str:
    folder.mkdir()
    scope: dict[str, object] = {"SETTINGS": SETTINGS[algorithm]}
    exec(FLOW, scope)
    return scope["calibrate"](folder, scope["model"], scope["batches"], True).read_text()


@pytest.mark.heavy
def test_two_ranks_of_a_distributed_model_write_the_record_of_one_process(tmp_path):
    expected = record_of_one_process(tmp_path / "one", "hfmg")
    settings = f"SETTINGS, FOLDER, WRAP = {SETTINGS['hfmg']!r}, {str(tmp_path)!r}, True\n"
    assert run_together(tmp_path, settings + FLOW + SHARDED) == [f"{expected}\n"] * 2
    assert sorted(path.name for path in tmp_path.glob("*.onnx")) == ["modified.onnx"]


@pytest.mark.heavy
def test_torchrun_writes_the_record_of_one_process(tmp_path):
    expected = record_of_one_process(tmp_path / "one", "ifmr")
    script = tmp_path / "script.py"
    script.write_text(f"SETTINGS, FOLDER, WRAP = {SETTINGS['ifmr']!r}, {str(tmp_path)!r}, False\n" + FLOW + SHARDED)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run([*launcher, str(script)], capture_output=True, text=True, env=environment, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "record.txt").read_text() == expected


TOGETHER = """
import time
import torch.distributed as dist
from twinquant.errors import TwinQuantError
rank, size = dist.get_rank(), dist.get_world_size()
config, record = Path(FOLDER) / "config.json", Path(FOLDER) / "record.txt"
if rank == 0:
    settings = Path(FOLDER) / "settings.cfg"
    settings.write_text(SETTINGS)
    amct.create_quant_config(config, model, batches[0], batch_num=4, config_defination=settings)
dist.barrier()

def attempt(run):
    try:
        run()
        print("no error")
    except TwinQuantError as error:
        print(type(error).__name__, str(error).replace(chr(10), " "))

def calibrating(path=None):
    return amct.quantize_model(path or config, Path(FOLDER) / "modified.onnx", record, model, batches[0])
"""


def messages(folder: Path, body: str, **options) -> list[str]:
    start = f"SETTINGS, FOLDER = {'batch_num: 4'!r}, {str(folder)!r}\n"
    return run_together(folder, start + FLOW + TOGETHER + body, **options)


@pytest.mark.heavy
def test_the_failure_of_one_rank_is_told_to_all_and_to_the_record(tmp_path):
    body = """
module = calibrating()
def run():
    for number, batch in enumerate(batches[rank:4:size]):
        module(batch * float("nan") if rank == 1 and number == 1 else batch)
attempt(run)
dist.barrier()
print(record.read_text())
"""
    first, second = messages(tmp_path, body)
    assert "PeerError process 1 failed: " in first and "batch 4" in first and "NaN" in first
    assert "CalibrationError" in second and "NaN" in second
    assert "calibration has not finished: process 1 failed: " in first


@pytest.mark.heavy
def test_a_rank_that_ends_is_an_error_of_the_others_that_says_so(tmp_path):
    body = """
module = calibrating()
dist.barrier()
if rank == 1:
    atexit.unregister(dist.destroy_process_group)
    os._exit(0)
attempt(lambda: [module(batch) for batch in batches[:2]])
print(record.read_text())
atexit.unregister(dist.destroy_process_group)
sys.stdout.flush()
os._exit(0)
"""
    first, _ = messages(tmp_path, body)
    assert "PeerError process 0 waited for the 1 other(s), and they cannot be reached: " in first
    assert "calibration has not finished: process 0 waited" in first


@pytest.mark.heavy
def test_a_rank_that_cannot_begin_tells_the_others_why(tmp_path):
    body = """
attempt(lambda: calibrating(Path(FOLDER) / "absent.json" if rank == 1 else None))
"""
    first, second = messages(tmp_path, body)
    assert "PeerError process 1 failed: there is no configuration file" in first
    assert "ConfigError there is no configuration file" in second


BALANCED = """
import json
config = Path(FOLDER) / "config.json"
record = Path(FOLDER) / "record.txt"
inputs = batches[RANK::SIZE]
if RANK == 0:
    amct.create_quant_config(config, model, batches[0], batch_num=6)
    settings = json.loads(config.read_text())
    for name in ("0", "3", "5"):
        settings[name]["activation_quant_params"] = {"num_bits": 8, "act_algo": "minmax", "asymmetric": True}
    settings["5"]["dmq_balancer_param"] = 0.5
    config.write_text(json.dumps(settings))
if SIZE > 1:
    torch.distributed.barrier()
measuring = amct.quantize_preprocess(config, record, model, batches[0])
for batch in inputs:
    measuring(batch)
calibrated = amct.quantize_model(config, Path(FOLDER) / "modified.onnx", record, model, batches[0])
for batch in inputs:
    calibrated(batch)
TEXT = record.read_text()
"""


@pytest.mark.heavy
def test_two_ranks_find_ranges_and_balance_factors_of_one_process(tmp_path):
    one = tmp_path / "one"
    one.mkdir()
    scope: dict[str, object] = {"FOLDER": str(one), "RANK": 0, "SIZE": 1}
    exec(FLOW + BALANCED, scope)
    assert "tensor_balance_factor" in scope["TEXT"]
    start = f"FOLDER, RANK, SIZE = {str(tmp_path)!r}, rank, size\n"
    assert run_together(tmp_path, start + FLOW + BALANCED + "print(TEXT)") == [f"{scope['TEXT']}\n"] * 2
