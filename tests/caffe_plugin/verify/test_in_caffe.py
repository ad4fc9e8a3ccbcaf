"""What stock Caffe itself makes of what is written. Skipped where pycaffe is not installed: no package index has it."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import twinquant
from twinquant_caffe import amct
from twinquant_caffe.deploy_runner import DeployRunner

caffe = pytest.importorskip("caffe")
pytest.importorskip("cv2")

NET = tuple(
    str(Path(find_spec("twinquant_caffe").origin).parent / "demo" / f"digits.{end}")
    for end in ("prototxt", "caffemodel")
)
DIGITS = Path(find_spec("twinquant").origin).parent / "digits"

pytestmark = pytest.mark.filterwarnings("ignore")  # pycaffe's own


@pytest.fixture(scope="module")
def held_out():
    """(float32 input (450, 1, 8, 8), labels (450,))."""
    with np.load(DIGITS / "held_out_digits.npz") as digits:
        return digits["images"].astype(np.float32)[:, None] / 16, digits["labels"]


def in_caffe(prototxt, caffemodel, images):
    net = caffe.Net(str(prototxt), str(caffemodel), caffe.TEST)
    net.blobs["image"].reshape(*images.shape)
    net.reshape()
    net.blobs["image"].data[...] = images
    return net.forward()["scores"].copy()


@pytest.mark.parametrize("style", ["builtin", "python"])
def test_the_fake_quant_twin_computes_exactly_what_the_integers_of_the_deploy_twin_do(
    tmp_path, monkeypatch, held_out, style
):
    images, labels = held_out
    options = {"batch_num": 10, "fake_quant_style": style}
    output = twinquant.quantize(NET, DIGITS / "calibration_digits.npz", tmp_path / "digits", **options).output
    monkeypatch.syspath_prepend(tmp_path)  # the module of Python layers lies beside the net
    monkeypatch.delitem(sys.modules, "twinquant_fake_quant", raising=False)
    scores = in_caffe(*output.fake_quant.files[:2], images)
    with DeployRunner(output.deploy.model) as runner:
        np.testing.assert_array_equal(scores, runner.run({"image": images})["scores"])
    assert np.mean(scores.argmax(axis=1) == labels) > 0.98


@pytest.mark.parametrize("batch_num", [1, 5])
def test_the_modified_net_fills_its_record_while_caffe_runs_it(tmp_path, held_out, batch_num):
    images, labels = held_out
    config, record = tmp_path / "config.json", tmp_path / "record.txt"
    modified = tmp_path / "modified.prototxt", tmp_path / "modified.caffemodel"
    amct.create_quant_config(config, *NET, batch_num=batch_num)
    graph = amct.init(config, *NET, record)
    amct.quantize_model(graph, *modified)
    amct.set_cpu_mode()
    with np.load(DIGITS / "calibration_digits.npz") as digits:
        batches = np.split(digits["image"], 5)
    net = caffe.Net(*map(str, modified), caffe.TEST)
    net.blobs["image"].reshape(*batches[0].shape)
    for seen in range(batch_num):
        with pytest.raises(twinquant.TwinQuantError, match=f"{seen} of {batch_num} batches seen"):
            amct.save_model(graph, "Both", tmp_path / "out" / "digits")
        net.blobs["image"].data[...] = batches[seen]
        net.forward()
    amct.save_model(graph, "Both", tmp_path / "out" / "digits")
    twin = (tmp_path / "out" / f"digits_fake_quant_{end}" for end in ("model.prototxt", "weights.caffemodel"))
    assert np.mean(in_caffe(*twin, images).argmax(axis=1) == labels) > 0.97
