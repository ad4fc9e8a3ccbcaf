"""Configurations as JSON, in the vendor's form."""

import json

import pytest

from twinquant.config import create_config, read_config, write_config
from twinquant.errors import ConfigError, OutputWriteError
from twinquant.plan import LayerInfo, LayerKind

# As the vendor's tool writes it for a model of one convolution and one Gemm, name by name.
VENDOR = """{
    "version":1,
    "batch_num":1,
    "activation_offset":true,
    "do_fusion":true,
    "skip_fusion_layers":[],
    "conv1":{
        "quant_enable":true,
        "activation_quant_params":{
            "num_bits":8,
            "max_percentile":0.999999,
            "min_percentile":0.999999,
            "search_range":[
                0.7,
                1.3
            ],
            "search_step":0.01,
            "act_algo":"ifmr",
            "asymmetric":true
        },
        "weight_quant_params":{
            "num_bits":8,
            "channel_wise":true,
            "wts_algo":"arq_quantize"
        }
    },
    "fc":{
        "quant_enable":true,
        "activation_quant_params":{
            "num_bits":8,
            "max_percentile":0.999999,
            "min_percentile":0.999999,
            "search_range":[
                0.7,
                1.3
            ],
            "search_step":0.01,
            "act_algo":"ifmr",
            "asymmetric":true
        },
        "weight_quant_params":{
            "num_bits":8,
            "channel_wise":false,
            "wts_algo":"arq_quantize"
        }
    }
}"""

TWO_LAYERS = (
    LayerInfo("fc", "Gemm", LayerKind.GEMM, weight_shape=(8, 10)),
    LayerInfo("conv1", "Conv", LayerKind.CONV, weight_shape=(8, 3, 3, 3)),
    LayerInfo("dynamic", "Gemm", LayerKind.GEMM, refusal="its weight is not constant"),
)


def content_of(config, tmp_path):
    write_config(config, tmp_path / "config.json")
    return json.loads((tmp_path / "config.json").read_text())


@pytest.fixture
def error_of(tmp_path):
    """Return the error about the vendor's file with one text in place of another."""

    def error_of(old, new):
        assert old in VENDOR
        path = tmp_path / "config.json"
        path.write_text(VENDOR.replace(old, new, 1))
        with pytest.raises(ConfigError) as caught:
            read_config(path, TWO_LAYERS)
        return caught.value

    return error_of


def test_the_file_is_the_vendors_byte_for_byte(tmp_path):
    write_config(create_config(TWO_LAYERS), tmp_path / "config.json")
    assert (tmp_path / "config.json").read_bytes() == VENDOR.encode()


def test_reading_the_vendors_file_gives_the_default_configuration(tmp_path):
    (tmp_path / "config.json").write_text(VENDOR)
    assert read_config(tmp_path / "config.json", TWO_LAYERS) == create_config(TWO_LAYERS)


def test_writing_and_reading_loses_nothing(layers, tmp_path):
    overrides = {
        "skip_layers": ["pool"],
        "skip_fusion_layers": ["stem"],
        "fakequant_precision_mode": "FORCE_FP16_QUANT",
        "layers": {
            "stem": {"activation_algorithm": "hfmg", "num_of_bins": 1024, "dmq_migration_strength": 0.4},
            "body": {"weight_algorithm": "ada_quantize", "num_iteration": 3, "activation_bits": 16},
            "up": {"activation_algorithm": "minmax", "asymmetric": False},
            "fc": {"activation_algorithm": "percentile", "weight_bits": 4},
        },
    }
    config = create_config(layers, batch_num=3, overrides=overrides)
    write_config(config, tmp_path / "config.json")
    assert read_config(tmp_path / "config.json", layers) == config


def test_the_order_of_keys_is_the_vendors(layers, tmp_path):
    overrides = {
        "fakequant_precision_mode": "FORCE_FP16_QUANT",
        "layers": {"stem": {"num_of_bins": 1024, "dmq_migration_strength": 0.4, "weight_algorithm": "ada_quantize"}},
    }
    content = content_of(create_config(layers, overrides=overrides), tmp_path)
    assert list(content)[:7] == [
        "version",
        "batch_num",
        "activation_offset",
        "do_fusion",
        "fakequant_precision_mode",
        "skip_fusion_layers",
        "body",
    ]
    stem = content["stem"]
    assert list(stem) == ["quant_enable", "dmq_balancer_param", "activation_quant_params", "weight_quant_params"]
    assert list(stem["activation_quant_params"]) == ["num_bits", "act_algo", "num_of_bins", "asymmetric"]
    assert list(stem["weight_quant_params"]) == [
        "num_bits",
        "reg_param",
        "warm_start",
        "num_iteration",
        "beta_range",
        "channel_wise",
        "wts_algo",
    ]


def test_layers_are_written_in_the_order_of_their_names(layers, tmp_path):
    content = content_of(create_config(layers), tmp_path)
    assert list(content)[5:] == ["body", "fc", "out", "pool", "rnn", "stem", "up", "volume"]


def test_a_layer_that_the_file_does_not_name_is_not_quantized(tmp_path):
    (tmp_path / "config.json").write_text('{"version": 1, "conv1": {"quant_enable": true}}')
    config = read_config(tmp_path / "config.json", TWO_LAYERS)
    assert {name: layer.quant_enable for name, layer in config.layers.items()} == {"fc": False, "conv1": True}


def test_settings_that_the_file_leaves_out_have_their_defaults(tmp_path):
    (tmp_path / "config.json").write_text('{"activation_offset": false, "conv1": {"quant_enable": true}}')
    layer = read_config(tmp_path / "config.json", TWO_LAYERS).layers["conv1"]
    assert (layer.activation.algorithm, layer.activation.asymmetric, layer.weight.channel_wise) == ("ifmr", False, True)


def test_a_layer_that_cannot_be_quantized_may_be_listed_switched_off(tmp_path):
    text = '{"conv1": {"quant_enable": true}, "dynamic": {"quant_enable": false}}'
    (tmp_path / "config.json").write_text(text)
    assert "dynamic" not in read_config(tmp_path / "config.json", TWO_LAYERS).layers


def test_an_unknown_setting_has_its_path_and_close_names(error_of):
    error = error_of('"num_bits":8', '"num_bit":8')
    assert error.path == "$.conv1.activation_quant_params.num_bit"
    assert "config.json, $.conv1.activation_quant_params.num_bit" in str(error)
    assert "did you mean 'num_bits'" in str(error)


def test_a_wrong_value_has_its_path_and_what_is_allowed(error_of):
    error = error_of('"num_bits":8', '"num_bits":5')
    assert error.path == "$.conv1.activation_quant_params.num_bits"
    assert "must be one of 4, 8, 16, got 5" in str(error)


@pytest.mark.parametrize(
    ("old", "new", "path"),
    [
        ('"version":1', '"version":2', "$.version"),
        ('"version":1', '"versoin":1', "$.versoin"),
        ('"conv1":{', '"conv11":{', "$.conv11"),
        ('"conv1":{', '"dynamic":{', "$.dynamic"),
        ('"conv1":{', '"fc":{', "$.fc"),
        ('"batch_num":1', '"batch_num":1, "batch_num":2', "$.batch_num"),
        ('"num_bits":8', '"num_bits":8, "num_bits":8', "$.conv1.activation_quant_params.num_bits"),
        ('"quant_enable":true,', "", "$.conv1.quant_enable"),
        ('"quant_enable":true', '"quant_enable":1', "$.conv1.quant_enable"),
        ('"quant_enable":true', '"quant_enable":true, "quantize":1', "$.conv1.quantize"),
        ('"quant_enable":true', '"quant_enable":true, "dmq_balancer_param":1', "$.conv1.dmq_balancer_param"),
        ('"act_algo":"ifmr"', '"act_algo":"hfmg"', "$.conv1.activation_quant_params.max_percentile"),
        ('"act_algo":"ifmr"', '"num_of_bins":1024', "$.conv1.activation_quant_params.num_of_bins"),
        ('"channel_wise":true', '"reg_param":0.1', "$.conv1.weight_quant_params.reg_param"),
        ('"channel_wise":false', '"channel_wise":true', "$.fc.weight_quant_params.channel_wise"),
        ('"skip_fusion_layers":[]', '"skip_fusion_layers":["x"]', "$.skip_fusion_layers"),
        ('"search_step":0.01', '"search_step":NaN', "$.conv1.activation_quant_params.search_step"),
    ],
)
def test_an_error_has_the_path_of_the_setting(error_of, old, new, path):
    assert error_of(old, new).path == path


def test_text_that_is_no_json_has_line_and_column(error_of):
    assert "config.json, line 2, column 15" in str(error_of('"version":1', '"version" 1'))


@pytest.mark.parametrize(
    "text", ["[]", "3", '{"conv1": true}', '{"conv1": {"quant_enable": true, "weight_quant_params": 1}}']
)
def test_json_of_another_shape(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="must be"):
        read_config(tmp_path / "config.json", TWO_LAYERS)


def test_a_file_in_which_every_layer_is_switched_off(tmp_path):
    (tmp_path / "config.json").write_text(VENDOR.replace('"quant_enable":true', '"quant_enable":false'))
    with pytest.raises(ConfigError, match="no layer is left"):
        read_config(tmp_path / "config.json", TWO_LAYERS)


def test_a_missing_file(tmp_path):
    with pytest.raises(ConfigError, match="there is no configuration file"):
        read_config(tmp_path / "config.json", TWO_LAYERS)


def test_a_folder_that_is_missing_is_an_output_error(tmp_path):
    with pytest.raises(OutputWriteError, match="its folder has to exist"):
        write_config(create_config(TWO_LAYERS), tmp_path / "absent" / "config.json")


def test_a_failed_write_leaves_nothing_behind(tmp_path):
    (tmp_path / "config.json").mkdir()
    with pytest.raises(OutputWriteError):
        write_config(create_config(TWO_LAYERS), tmp_path / "config.json")
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_file_that_is_nested_without_end_is_an_error(tmp_path):
    lists, objects = "[" * 3000 + "]" * 3000, '{"a":' * 3000 + "1" + "}" * 3000
    for text in ("[" * 100_000, '{"a":' * 100_000, lists, objects, f'{{"batch_num":{lists}}}'):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ConfigError, match=r"config\.json, (\$: nested far too deeply|\$\.a: neither)"):
            read_config(tmp_path / "config.json", TWO_LAYERS)


def test_the_vendors_number_of_batches_holds_where_a_file_says_nothing(tmp_path):
    (tmp_path / "config.json").write_text('{"conv1": {"quant_enable": true}}')
    assert read_config(tmp_path / "config.json", TWO_LAYERS).batch_num == 1
    assert read_config(tmp_path / "config.json", TWO_LAYERS, batch_num=7).batch_num == 7


def test_percentiles_that_differ_are_an_error_with_a_path(error_of):
    percentile = '"max_percentile":0.99,"min_percentile":0.98,"act_algo":"percentile","asymmetric":true'
    start = VENDOR.index('"max_percentile"')
    old = VENDOR[start : VENDOR.index("}", start)]
    error = error_of(old, percentile)
    assert error.path == "$.conv1.activation_quant_params.max_percentile"
    assert "max_percentile 0.99 and min_percentile 0.98 differ" in str(error)
