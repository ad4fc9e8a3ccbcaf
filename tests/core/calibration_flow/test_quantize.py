"""The twins, the record and the manifest, together."""

from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest

import twinquant
from twinquant.config import create_config, write_config
from twinquant.errors import ArgumentError, ConfigError, OutputPathError
from twinquant.records import parse_record_file

MINMAX = {"activation_algorithm": "minmax"}


def listed(folder):
    return {path.name for path in folder.iterdir()}


def test_twins_record_and_manifest_land_together(toy, model, batches, tmp_path):
    result = twinquant.quantize(model, batches, tmp_path / "out" / "net", batch_num=4)
    expected = {"net_fake_quant_model.toy", "net_deploy_model.toy", "net_record.txt", "net_manifest.json"}
    assert listed(tmp_path / "out") == expected
    assert result.output.deploy.model == tmp_path / "out" / "net_deploy_model.toy"
    assert [path.name for path in result.output.sidecars] == ["net_record.txt", "net_manifest.json"]
    assert list(parse_record_file(tmp_path / "out" / "net_record.txt").records) == list(result.records.records)
    assert (tmp_path / "out" / "net_manifest.json").read_text("utf-8") == result.manifest.text
    assert toy.saved == ["observers"]


def test_without_a_prefix_the_names_have_none(toy, model, batches, tmp_path):
    twinquant.quantize(model, batches, f"{tmp_path / 'out'}/", batch_num=4, save_type="Deploy")
    assert listed(tmp_path / "out") == {"deploy_model.toy", "record.txt", "manifest.json"}


def test_the_twins_are_those_of_the_fused_and_balanced_model(toy, model, batches, tmp_path):
    config = {**MINMAX, "layers": {"b": {"dmq_migration_strength": 0.5}}}
    result = twinquant.quantize(model, batches, tmp_path / "out" / "net", batch_num=4, config=config)
    written = json.loads(result.output.fake_quant.model.read_text())
    assert written["a"][2][1] == 8.0
    factor = result.records.records["b"].tensor_balance_factor[2]
    assert written["b"][2][1] == pytest.approx(4.0 * factor, rel=1e-6)


def test_the_same_input_gives_the_same_bytes(toy, model, batches, tmp_path):
    for folder in ("one", "two"):
        twinquant.quantize(model, batches, tmp_path / folder / "net", batch_num=4)
    for name in listed(tmp_path / "one"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_the_manifest_holds_the_hashes_of_model_data_and_configuration(toy, model, batches, tmp_path):
    config = tmp_path / "config.json"
    write_config(create_config(toy.layers(None), batch_num=4, overrides=MINMAX), config)
    manifest = json.loads(twinquant.quantize(model, batches, tmp_path / "net", config=config).manifest.text)
    digest = hashlib.sha256(b"the net").hexdigest()
    assert manifest["model"] == [{"name": "net.toy", "size": 7, "sha256": digest}]
    each = [
        hashlib.sha256(json.dumps(["x", "float32", [10, 3]]).encode() + batch.tobytes()).hexdigest()
        for batch in batches
    ]
    assert manifest["data_sha256"] == hashlib.sha256("".join(each).encode()).hexdigest()
    assert manifest["config"]["layers"]["a"]["activation"]["algorithm"] == "minmax"
    text = json.dumps(manifest["config"], sort_keys=True)
    assert manifest["config_sha256"] == hashlib.sha256(text.encode()).hexdigest()
    assert manifest["versions"]["twinquant-core"] == twinquant.__version__
    assert manifest["versions"]["numpy"] == np.__version__
    assert (manifest["batch_num"], manifest["passes"], manifest["layers"]) == (4, 1, 2)
    assert manifest["folded_layers"] == ["a"]


def test_a_model_in_memory_has_a_hash_too(toy, batches, tmp_path):
    manifest = twinquant.quantize({"a": "model"}, batches, tmp_path / "net", batch_num=4).manifest
    assert manifest.model[0].name == "model"
    assert len(manifest.model[0].sha256) == 64


@pytest.mark.parametrize(
    ("config", "batch_num", "expected"),
    [
        (None, 2, 2),
        ({"batch_num": 3}, None, 3),
        ({"batch_num": 3}, 2, 2),
        ("json", None, 4),
        ("json", 1, 1),
        ("cfg", None, 3),
        ("cfg", 2, 2),
    ],
)
def test_the_argument_counts_before_the_configuration(toy, model, batches, tmp_path, config, batch_num, expected):
    if config == "json":
        config = tmp_path / "config.json"
        write_config(create_config(toy.layers(None), batch_num=4), config)
    elif config == "cfg":
        config = tmp_path / "config.cfg"
        config.write_text("batch_num: 3")
    result = twinquant.quantize(model, batches, tmp_path / "net", config=config, batch_num=batch_num)
    assert result.manifest.batch_num == expected


def test_without_any_number_32_batches_are_used(toy, model, batches, tmp_path):
    assert twinquant.quantize(model, batches * 10, tmp_path / "net").manifest.batch_num == 32


@pytest.mark.parametrize("name", ["config.json", "config.JSON", "config"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n  "], ids=["plain", "BOM", "blanks"])
def test_a_json_file_that_does_not_say_how_many_batches_stands_for_32(toy, model, batches, tmp_path, name, start):
    (tmp_path / name).write_bytes(start + b'{"a": {"quant_enable": true}}')
    result = twinquant.quantize(model, batches * 8, tmp_path / "net", config=tmp_path / name)
    assert (result.manifest.batch_num, list(result.records.records)) == (32, ["a"])


def test_a_simplified_configuration_is_known_by_its_name_or_its_content(toy, model, batches, tmp_path):
    for name in ("config.cfg", "config.prototxt"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbfbatch_num: 4")
        result = twinquant.quantize(model, batches, tmp_path / "net", config=tmp_path / name)
        assert result.manifest.batch_num == 4


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "", r"config\.json, \$: the file is empty"),
        ("config.json", "\ufeff \n", r"config\.json, \$: the file is empty"),
        ("config.json", "[]", r"config\.json, \$: must be an object of settings and layers, got \[\]"),
        ("config", "[]", r"config, \$: must be an object of settings and layers, got \[\]"),
        ("config.json", "batch_num: 4", r"config\.json, line 1, column 1: not JSON"),
    ],
)
def test_a_file_that_holds_something_else_is_an_error_in_the_words_of_its_kind(
    toy, model, batches, tmp_path, name, text, message
):
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        twinquant.quantize(model, batches, tmp_path / "net", config=tmp_path / name)


def test_a_missing_configuration_is_an_error_that_names_it(toy, model, batches, tmp_path):
    with pytest.raises(ConfigError, match=r"nothing\.json' cannot be read"):
        twinquant.quantize(model, batches, tmp_path / "net", config=tmp_path / "nothing.json")


def test_a_configuration_of_another_kind_is_an_error(toy, model, batches, tmp_path):
    with pytest.raises(ArgumentError, match="config: must be a path, a dict of overrides or a QuantConfig, got int"):
        twinquant.quantize(model, batches, tmp_path / "net", config=3)


def test_no_output_replaces_the_data(toy, model, batches, tmp_path):
    data = tmp_path / "net_record.txt"
    np.savez(tmp_path / "data.npz", x=np.concatenate(batches))
    data.symlink_to(tmp_path / "data.npz")
    with pytest.raises(OutputPathError, match="would replace an input"):
        twinquant.quantize(model, tmp_path / "data.npz", tmp_path / "net", batch_num=4)


def test_an_error_while_writing_leaves_nothing(toy, model, batches, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(toy, "write", fail)
    with pytest.raises(twinquant.TwinQuantError, match="the disk is full"):
        twinquant.quantize(model, batches, tmp_path / "out" / "net", batch_num=4)
    assert not (tmp_path / "out").exists()


def test_a_file_where_the_folder_should_be_is_an_error_before_anything_runs(toy, model, batches):
    with pytest.raises(OutputPathError, match=r"cannot be made: '.*net\.toy' is a file"):
        twinquant.quantize(model, batches, model / "out" / "net", batch_num=4)
    assert toy.runs == []


def test_progress_tells_layers_pass_batch_and_time_left_and_never_goes_back(toy, model, batches, tmp_path):
    told = []
    twinquant.quantize(model, batches, tmp_path / "net", batch_num=4, progress=lambda *words: told.append(words))
    assert "calibrating 2 layers: pass 1, batch 3 of 4, at most 0:00 left" in [words for words, _ in told]
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions)
    assert (told[0][0], fractions[0], fractions[-1]) == ("loading the model", 0.0, 1.0)
