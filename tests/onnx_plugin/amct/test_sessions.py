"""Running a modified model in a session with AMCT_SO: after `batch_num` batches the record is complete."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

import twinquant
from twinquant.errors import RecordFileError
from twinquant.records import parse_record_file
from twinquant_onnx import amct
from twinquant_onnx.modified import measure, progress, session


def minmax(values):
    """The min-max factors by their definition."""
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    scale = (high - low) / 255
    return scale, int(-np.rint(low / scale) - 128)


def activations(folder, data, names):
    """The values of some tensors of the modified model, whose record is complete, from ONNX Runtime."""
    model = onnx.load(folder / "modified.onnx")
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    tapped = ort.InferenceSession(model.SerializeToString(), amct.AMCT_SO)
    results = [tapped.run(list(names), {"x": batch}) for batch in data]
    return [np.concatenate([result[index] for result in results]) for index in range(len(names))]


def test_the_record_holds_the_factors_of_all_batches(prepared, kit):
    data = kit.batches()
    kit.run_all(prepared / "modified.onnx", data)
    records = parse_record_file(prepared / "record.txt").records
    expected = [minmax(np.concatenate(data)), *map(minmax, activations(prepared, data, ["r1", "flat"]))]
    assert list(records) == ["conv1", "conv2", "fc"]
    for record, (scale, offset) in zip(records.values(), expected, strict=True):
        assert record.scale_d == pytest.approx(scale, rel=1e-5)
        assert record.offset_d == offset


def test_the_weight_scales_are_those_of_the_fused_weights(prepared, kit):
    kit.run_all(prepared / "modified.onnx", kit.batches())
    tensors = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(prepared / "model.onnx").graph.initializer}
    factor = tensors["gamma"] / np.sqrt(tensors["var"] + 1e-5)
    fused = tensors["w1"] * factor.reshape(-1, 1, 1, 1)
    low, high = fused.min(axis=(1, 2, 3)), fused.max(axis=(1, 2, 3))
    expected = np.where(high >= -low, high / 127, -low / 128)
    scales = parse_record_file(prepared / "record.txt").records["conv1"].scale_w
    np.testing.assert_allclose(scales, expected, rtol=1e-5)


@pytest.mark.parametrize("algorithm", ["ifmr", "hfmg", "minmax"])
def test_the_record_differs_from_twinquant_calibrate_by_what_rounded_weights_do_to_activations(
    tmp_path, kit, algorithm
):
    onnx.save(kit.convolutions(), tmp_path / "model.onnx")
    settings = {"ifmr": "ifmr_quantize {}", "hfmg": "hfmg_quantize { num_of_bins: 1024 }", "minmax": ""}[algorithm]
    (tmp_path / "simple.cfg").write_text(f"batch_num: 3 common_config {{ {settings} }}")
    amct.create_quant_config(
        tmp_path / "config.json", tmp_path / "model.onnx", config_defination=tmp_path / "simple.cfg"
    )
    if algorithm == "minmax":
        kit.change_config(tmp_path / "config.json", kit.use_minmax)
    amct.quantize_model(
        tmp_path / "config.json", tmp_path / "model.onnx", tmp_path / "modified.onnx", tmp_path / "record.txt"
    )
    kit.run_all(tmp_path / "modified.onnx", kit.batches())
    of_floats, of_rounded = (
        twinquant.calibrate(
            tmp_path / f"{name}.onnx",
            kit.batches(),
            tmp_path / "direct.txt",
            config=tmp_path / "config.json",
            prepared_model=tmp_path / "prepared.onnx",
        ).records
        for name in ("model", "modified")
    )
    for name, record in parse_record_file(tmp_path / "record.txt").records.items():
        np.testing.assert_array_equal(record.scale_w, of_floats[name].scale_w)
        assert (record.scale_d, record.offset_d) == (of_rounded[name].scale_d, of_rounded[name].offset_d)
        # Candidates of ifmr with nearly equal losses lie some hundredths apart.
        assert record.scale_d == pytest.approx(of_floats[name].scale_d, rel=0.1 if algorithm == "ifmr" else 0.01)


def test_the_record_stays_empty_until_the_last_batch(prepared, kit):
    kit.run_all(prepared / "modified.onnx", kit.batches(2))
    assert (prepared / "record.txt").read_text() == ""
    with pytest.raises(RecordFileError, match="calibration has not finished: 2 of 3 batches seen"):
        amct.save_model(prepared / "modified.onnx", prepared / "record.txt", prepared / "out" / "m")


def test_the_stored_batches_are_removed_when_the_record_is_complete(prepared, kit):
    kit.run_all(prepared / "modified.onnx", kit.batches(2))
    assert (prepared / "record.txt.batches").is_dir()
    kit.run_all(prepared / "modified.onnx", kit.batches(1, seed=2))
    assert not (prepared / "record.txt.batches").exists()


def test_batches_of_several_sessions_count_together(prepared, kit):
    data = kit.batches()
    for batch in data:
        kit.run_all(prepared / "modified.onnx", [batch])
    record = parse_record_file(prepared / "record.txt").records["conv1"]
    assert record.scale_d == pytest.approx(minmax(np.concatenate(data))[0], rel=1e-6)


def test_more_batches_are_ignored_with_a_line_in_the_log(prepared, kit, caplog):
    kit.run_all(prepared / "modified.onnx", kit.batches())
    complete = (prepared / "record.txt").read_text()
    caplog.set_level(logging.INFO, "twinquant_onnx")
    kit.run_all(prepared / "modified.onnx", [100 * batch for batch in kit.batches(2, seed=5)])
    assert (prepared / "record.txt").read_text() == complete
    assert sum("a further batch is ignored" in message for message in caplog.messages) == 2


def test_a_complete_record_is_not_read_for_every_further_batch(prepared, kit, monkeypatch):
    kit.run_all(prepared / "modified.onnx", kit.batches())
    reads = []
    read = progress.read_begun_records
    monkeypatch.setattr(progress, "read_begun_records", lambda path: reads.append(path) or read(path))
    kit.run_all(prepared / "modified.onnx", kit.batches(5))
    assert len(reads) == 1


def test_a_record_that_is_emptied_is_filled_again(prepared, kit):
    data = kit.batches()
    kit.run_all(prepared / "modified.onnx", data)
    complete = (prepared / "record.txt").read_text()
    kit.run_all(prepared / "modified.onnx", data)  # ignored
    (prepared / "record.txt").write_text("")
    kit.run_all(prepared / "modified.onnx", data)
    assert (prepared / "record.txt").read_text() == complete


def test_constant_activations_stop_the_script_and_are_told_by_save_model(prepared, kit):
    with pytest.raises(Exception, match=r"twinquant\.calibration/failed, the log and save_model say why"):
        kit.run_all(prepared / "modified.onnx", [0 * batch for batch in kit.batches()])
    assert (prepared / "record.txt").read_text() == ""
    with pytest.raises(
        RecordFileError, match=r"same, in all 3 batches.*layer 'conv1': 0.*quant_enable: false"
    ) as caught:
        amct.save_model(prepared / "modified.onnx", prepared / "record.txt", prepared / "out" / "m")
    assert "allow" not in str(caught.value)  # the vendor's calls have no such argument


FORK = """
import os, sys
import numpy as np
from pathlib import Path
from twinquant.calibration.spool import BatchSpool

spool = BatchSpool(Path(sys.argv[1]), ["x"])
spool.open()
spool.add([np.zeros(3)])
child = os.fork()
if not child:
    os._exit(spool.open())  # how many batches are dropped
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_is_another_process(tmp_path):
    run = subprocess.run([sys.executable, "-c", FORK, str(tmp_path / "spool")], check=False, timeout=120)
    assert run.returncode == 1


def test_quantize_model_starts_anew(prepared, kit):
    kit.run_all(prepared / "modified.onnx", [100 * batch for batch in kit.batches(2)])
    amct.quantize_model(
        prepared / "config.json", prepared / "model.onnx", prepared / "modified.onnx", prepared / "record.txt"
    )
    data = kit.batches()
    kit.run_all(prepared / "modified.onnx", data)
    record = parse_record_file(prepared / "record.txt").records["conv1"]
    assert record.scale_d == pytest.approx(minmax(np.concatenate(data))[0], rel=1e-6)


SCRIPT = """
import sys
import numpy as np
import onnxruntime
from twinquant_onnx import amct

session = onnxruntime.InferenceSession(sys.argv[1], amct.AMCT_SO)
for batch in np.load(sys.argv[2])[: int(sys.argv[3])]:
    session.run(None, {"x": batch})
"""


def run_script(folder, data, count):
    np.save(folder / "data.npy", np.stack(data))
    arguments = [str(folder / "modified.onnx"), str(folder / "data.npy"), str(count)]
    subprocess.run([sys.executable, "-c", SCRIPT, *arguments], check=True, cwd=folder.parent, timeout=120)


def test_a_new_process_in_another_folder_fills_the_record(prepared, kit):
    data = kit.batches()
    run_script(prepared, data, 3)
    record = parse_record_file(prepared / "record.txt").records["conv1"]
    assert record.scale_d == pytest.approx(minmax(np.concatenate(data))[0], rel=1e-6)


def test_batches_of_a_process_that_ended_are_dropped(prepared, kit, caplog):
    run_script(prepared, [100 * batch for batch in kit.batches()], 2)
    data = kit.batches()
    kit.run_all(prepared / "modified.onnx", data)
    record = parse_record_file(prepared / "record.txt").records["conv1"]
    assert record.scale_d == pytest.approx(minmax(np.concatenate(data))[0], rel=1e-6)
    assert "2 of 3 batches that another process stored are dropped" in caplog.messages


def test_nan_stops_the_script_and_is_told_by_save_model(prepared, kit):
    data = kit.batches()
    data[1][0, 0, 0, 0] = np.nan
    with pytest.raises(Exception, match=r"twinquant\.calibration/failed, the log and save_model say why"):
        kit.run_all(prepared / "modified.onnx", data)
    assert (prepared / "record.txt").read_text() == ""
    with pytest.raises(RecordFileError, match=r"has not finished: layer 'conv1', batch 2: .*1 NaN"):
        amct.save_model(prepared / "modified.onnx", prepared / "record.txt", prepared / "out" / "m")


def test_after_a_failure_further_batches_fail_alike(prepared, kit, caplog):
    data = kit.batches()
    data[1][:] = np.inf
    for batches in (data, kit.batches(1)):
        caplog.clear()
        with pytest.raises(Exception, match="the log and save_model say why"):
            kit.run_all(prepared / "modified.onnx", batches)
        assert any("infinite" in message for message in caplog.messages)


def test_an_interrupted_calibration_goes_on_with_the_next_batch(prepared, kit, monkeypatch):
    def interrupted(job, batches):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(measure.MEASUREMENTS, measure.Purpose.FACTORS, interrupted)
        with pytest.raises(Exception, match="the log and save_model say why"):
            kit.run_all(prepared / "modified.onnx", kit.batches())
    assert (prepared / "record.txt").read_text() == ""
    kit.run_all(prepared / "modified.onnx", kit.batches(1, seed=8))
    record = parse_record_file(prepared / "record.txt").records["conv1"]
    assert record.scale_d == pytest.approx(minmax(np.concatenate(kit.batches()))[0], rel=1e-6)


def test_any_other_model_runs_with_amct_so(folder, kit):
    data = kit.batches(1)
    plain = ort.InferenceSession(str(folder / "model.onnx")).run(None, {"x": data[0]})[0]
    np.testing.assert_array_equal(kit.run_all(folder / "model.onnx", data)[0], plain)


def test_amct_so_is_one_object():
    assert amct.AMCT_SO is amct.AMCT_SO
    assert isinstance(amct.AMCT_SO, ort.SessionOptions)


def test_without_the_extensions_package_amct_so_says_what_to_install():
    script = "import sys; sys.modules['onnxruntime_extensions'] = None; from twinquant_onnx import amct; amct.AMCT_SO"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert "CapabilityError: AMCT_SO needs the package onnxruntime-extensions; run: pip install" in run.stderr


def test_several_inputs_of_several_types_are_stored_as_they_are(tmp_path, kit):
    nodes = [
        helper.make_node("Gather", ["table", "index"], ["rows"], name="gather"),
        helper.make_node("Cast", ["half"], ["full"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["rows", "full"], ["sum"]),
        helper.make_node("Where", ["mask", "sum", "zero"], ["masked"]),
        helper.make_node("MatMul", ["masked", "w"], ["y"], name="product"),
    ]
    random = np.random.default_rng(3)
    table = random.normal(size=(10, 4)).astype(np.float32)
    constants = {"table": table, "zero": np.zeros(1, np.float32), "w": np.ones((4, 2), np.float32)}
    inputs = {
        "index": (TensorProto.INT64, ["n"]),
        "half": (TensorProto.FLOAT16, ["n", 4]),
        "mask": (TensorProto.BOOL, ["n", 4]),
    }
    onnx.save(kit.make_model(nodes, constants, inputs, ["y"]), tmp_path / "model.onnx")
    amct.create_quant_config(tmp_path / "config.json", tmp_path / "model.onnx", batch_num=2)
    kit.change_config(tmp_path / "config.json", kit.use_minmax)
    amct.quantize_model(
        tmp_path / "config.json", tmp_path / "model.onnx", tmp_path / "modified.onnx", tmp_path / "record.txt"
    )
    modified = ort.InferenceSession(str(tmp_path / "modified.onnx"), amct.AMCT_SO)
    seen = []
    for length in (3, 5):
        index = random.integers(0, 10, length)
        half = random.normal(size=(length, 4)).astype(np.float16)
        mask = random.random((length, 4)) > 0.3
        modified.run(None, {"index": index, "half": half, "mask": mask})
        seen.append(np.where(mask, table[index] + half.astype(np.float32), np.float32(0)))
    scale, offset = minmax(np.concatenate(seen))
    record = parse_record_file(tmp_path / "record.txt").records["product"]
    assert record.scale_d == pytest.approx(scale, rel=1e-6)
    assert record.offset_d == offset


FIRST_NODES = {
    "product and sum": [
        helper.make_node("MatMul", ["x", "w"], ["p"], name="first"),
        helper.make_node("Add", ["p", "b"], ["y"]),
    ],
    "reshape": [
        helper.make_node("Reshape", ["x", "flat"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"], name="first"),
    ],
    "identity": [
        helper.make_node("Identity", ["x"], ["i"]),
        helper.make_node("MatMul", ["i", "w"], ["y"], name="first"),
    ],
}


@pytest.mark.parametrize("level", ["ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"])
@pytest.mark.parametrize("nodes", FIRST_NODES.values(), ids=FIRST_NODES)
def test_no_optimization_removes_the_operators(tmp_path, kit, nodes, level):
    constants = {"w": np.eye(4, dtype=np.float32), "b": np.ones(4, np.float32), "flat": np.array([-1, 4])}
    onnx.save(kit.make_model(nodes, constants, {"x": (TensorProto.FLOAT, [2, 3, 4])}, ["y"]), tmp_path / "model.onnx")
    amct.create_quant_config(tmp_path / "config.json", tmp_path / "model.onnx")
    kit.change_config(tmp_path / "config.json", kit.use_minmax)
    amct.quantize_model(
        tmp_path / "config.json", tmp_path / "model.onnx", tmp_path / "modified.onnx", tmp_path / "record.txt"
    )
    options = session.make_session_options()
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    kit.run_all(tmp_path / "modified.onnx", [np.arange(24, dtype=np.float32).reshape(2, 3, 4)], options)
    assert parse_record_file(tmp_path / "record.txt").records["first"].scale_d == pytest.approx(23 / 255, rel=1e-6)


def test_a_modified_model_that_was_moved_is_missed(prepared, kit):
    (prepared / "modified.onnx").rename(prepared / "moved.onnx")
    with pytest.raises(Exception, match="the log and save_model say why"):
        kit.run_all(prepared / "moved.onnx", kit.batches())
    with pytest.raises(RecordFileError, match="the modified model was moved"):
        amct.save_model(prepared / "moved.onnx", prepared / "record.txt", prepared / "out" / "m")


def test_threads_that_share_a_session_count_every_batch(prepared, kit):
    data = kit.batches()
    shared = ort.InferenceSession(str(prepared / "modified.onnx"), amct.AMCT_SO)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda batch: shared.run(None, {"x": batch}), data))
    record = parse_record_file(prepared / "record.txt").records["conv1"]
    assert record.scale_d == pytest.approx(minmax(np.concatenate(data))[0], rel=1e-6)
