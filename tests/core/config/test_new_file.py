"""The file that a calibration starts with."""

from __future__ import annotations

import json

import pytest

from twinquant.config import write_new_config
from twinquant.errors import OutputPathError

ARGUMENTS = {"skip_layers": None, "batch_num": 2, "activation_offset": True}


def test_every_layer_that_can_be_quantized_is_in_the_file(layers, tmp_path):
    write_new_config(layers, tmp_path / "new" / "config.json", definition=None, **ARGUMENTS)
    content = json.loads((tmp_path / "new" / "config.json").read_text())
    assert content["batch_num"] == 2
    assert {"stem", "fc"} <= content.keys()
    assert not content.keys() & {"relu", "dynamic"}


@pytest.mark.parametrize("target", ["model.onnx", "weights.bin", "simple.cfg", "link"])
def test_no_file_that_is_read_is_replaced(layers, tmp_path, target):
    texts = {"model.onnx": "a model", "weights.bin": "its weights", "simple.cfg": "batch_num: 4"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    (tmp_path / "link").symlink_to(tmp_path / "model.onnx")
    with pytest.raises(OutputPathError, match="would replace an input"):
        write_new_config(
            layers,
            tmp_path / target,
            definition=tmp_path / "simple.cfg",
            inputs=[tmp_path / "model.onnx", str(tmp_path / "weights.bin")],
            **ARGUMENTS,
        )
    assert {name: (tmp_path / name).read_text() for name in texts} == texts


def test_a_configuration_may_be_written_anew(layers, tmp_path):
    for _ in range(2):
        write_new_config(layers, tmp_path / "config.json", definition=None, **ARGUMENTS)
    assert (tmp_path / "config.json").exists()
