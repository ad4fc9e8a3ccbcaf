"""An OCR application keeps reading when its two networks are replaced by twins: PP-OCR on photographs with signs."""

from __future__ import annotations

import numpy as np
import pytest
from ocr_reading import SEEN, UNSEEN, agreement, edits, fed_to_networks, read, scenes, shipped

import twinquant
from twinquant_onnx.verify.simulator import DeploySimulator

pytestmark = pytest.mark.heavy


@pytest.fixture(scope="module")
def application():
    """The OCR application: finds lines of text, cuts them out and reads them."""
    return pytest.importorskip(
        "rapidocr_onnxruntime", reason="the wheel with the networks needs Python < 3.13"
    ).RapidOCR


@pytest.fixture(scope="module")
def evaluation(photographs):
    return scenes(photographs, 8, UNSEEN, seed=2)


@pytest.fixture(scope="module")
def twins(application, photographs, tmp_path_factory):
    """The twins of both networks, calibrated by default on what the application feeds them for other pictures."""
    pictures, _ = scenes(photographs, 8, SEEN, seed=1)
    folder = tmp_path_factory.mktemp("twins")
    return {
        kind: twinquant.quantize(shipped(kind), fed, folder / kind, batch_num=len(fed)).output
        for kind, fed in fed_to_networks(application(), pictures).items()
    }


@pytest.fixture(scope="module")
def fake_quant_reader(application, twins):
    """The application with the fake-quant twins in place of its networks."""
    return application(**{f"{kind}_model_path": str(twin.fake_quant.model) for kind, twin in twins.items()})


@pytest.fixture(scope="module")
def read_by_float(application, evaluation):
    return read(application(), evaluation[0])


def test_edits_counts_insertions_deletions_and_replacements():
    assert [edits("", "ab"), edits("kitten", "sitting"), edits("No Parking", "NoParking")] == [2, 3, 1]


def test_the_float_networks_read_what_is_written(evaluation, read_by_float):
    assert agreement(evaluation[1], read_by_float) > 0.9


def test_the_fake_quant_networks_read_95_percent_of_the_characters_that_float_reads(
    fake_quant_reader, evaluation, read_by_float
):
    pictures, written = evaluation
    given = read(fake_quant_reader, pictures)
    assert agreement(read_by_float, given) >= 0.95
    assert agreement(written, given) > 0.9


def test_the_simulated_deploy_networks_read_what_the_fake_quant_networks_read(
    application, fake_quant_reader, twins, evaluation
):
    deploy = application()
    deploy.text_det.infer = simulated(twins["det"])
    deploy.text_rec.session = simulated(twins["rec"])
    pictures = evaluation[0][:1]
    assert read(deploy, pictures) == read(fake_quant_reader, pictures)


def simulated(twin):
    simulator = DeploySimulator(twin.deploy.model)
    return lambda x: list(simulator.run({"x": x}).values())


@pytest.mark.parametrize(
    ("kind", "shape"), [("det", (1, 3, 160, 256)), ("det", (2, 3, 96, 96)), ("rec", (3, 3, 48, 200))]
)
def test_the_twins_agree_on_sizes_that_calibration_has_not_seen(twins, kind, shape):
    x = np.random.default_rng(7).uniform(-1, 1, shape).astype(np.float32)
    report = twinquant.verify(twins[kind].fake_quant.model, twins[kind].deploy.model, {"x": x})
    assert report.agree, [problem for layer in report.layers for problem in layer.problems]


def test_balanced_twins_are_not_larger_than_plain_ones(application, photographs, twins, tmp_path):
    """The networks keep their weights in Constant nodes, which balanced weights replace."""
    pictures, _ = scenes(photographs, 1, SEEN, seed=3)
    fed = fed_to_networks(application(), pictures)["det"]
    config = {"activation_algorithm": "minmax", "dmq_migration_strength": 0.5}
    balanced = twinquant.quantize(shipped("det"), fed, tmp_path / "det", batch_num=len(fed), config=config).output
    for one, other in zip(balanced.artifacts, twins["det"].artifacts, strict=True):
        assert one.model.stat().st_size < 1.2 * other.model.stat().st_size
