"""What a configuration holds when nothing, or only the call's arguments, say otherwise."""

import pytest

from twinquant.config import create_config
from twinquant.errors import ConfigError
from twinquant.plan import LayerInfo, LayerKind


def test_quantizable_layers_are_listed_in_graph_order(layers):
    names = list(create_config(layers).layers)
    assert names == ["stem", "body", "volume", "up", "pool", "rnn", "fc", "out"]


def test_the_defaults_are_those_of_the_vendors_tool(layers):
    config = create_config(layers)
    assert (config.version, config.batch_num, config.activation_offset, config.do_fusion) == (1, 1, True, True)
    assert config.skip_fusion_layers == ()
    assert config.fakequant_precision_mode == "DEFAULT"
    activation, weight = config.layers["stem"].activation, config.layers["stem"].weight
    assert (activation.algorithm, activation.num_bits, activation.asymmetric) == ("ifmr", 8, True)
    assert (activation.max_percentile, activation.min_percentile) == (0.999999, 0.999999)
    assert (activation.search_range, activation.search_step) == ((0.7, 1.3), 0.01)
    assert (weight.algorithm, weight.num_bits) == ("arq_quantize", 8)
    assert config.layers["stem"].dmq_migration_strength is None


def test_the_kind_decides_whether_there_is_a_scale_per_channel(layers):
    config = create_config(layers)
    channel_wise = {name for name, layer in config.layers.items() if layer.weight.channel_wise}
    assert channel_wise == {"stem", "body", "volume", "up", "rnn"}


def test_three_dimensional_convolutions_are_symmetric(layers):
    config = create_config(layers)
    assert {name for name, layer in config.layers.items() if not layer.activation.asymmetric} == {"volume"}


def test_without_activation_offset_all_activations_are_symmetric(layers):
    config = create_config(layers, activation_offset=False)
    assert not any(layer.activation.asymmetric for layer in config.layers.values())


def test_skipped_layers_stay_in_the_configuration_switched_off(layers):
    config = create_config(layers, skip_layers=["fc", "stem"], batch_num=8)
    assert config.batch_num == 8
    assert {name for name, layer in config.layers.items() if not layer.quant_enable} == {"fc", "stem"}


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("stemm", "did you mean 'stem'"),
        ("relu", "operators of type Relu are not quantized"),
        ("dynamic", "its weight is not constant"),
    ],
)
def test_skipping_what_cannot_be_quantized_is_an_error_that_says_why(layers, name, words):
    with pytest.raises(ConfigError, match=words) as caught:
        create_config(layers, skip_layers=[name])
    assert caught.value.path == "$.skip_layers"


def test_a_text_is_no_list_of_layers_to_skip(layers):
    with pytest.raises(ConfigError, match="a list of layer names"):
        create_config(layers, skip_layers="fc")


@pytest.mark.parametrize("batch_num", [0, -1, 1.5, True, "4"])
def test_a_wrong_number_of_batches(layers, batch_num):
    with pytest.raises(ConfigError, match="a whole number above 0") as caught:
        create_config(layers, batch_num=batch_num)
    assert caught.value.path == "$.batch_num"


def test_skipping_every_layer_is_an_error(layers):
    names = ["stem", "body", "volume", "up", "pool", "rnn", "fc", "out"]
    with pytest.raises(ConfigError, match="no layer is left"):
        create_config(layers, skip_layers=names)


def test_a_model_without_quantizable_layers_is_an_error():
    with pytest.raises(ConfigError, match="no layer that can be quantized"):
        create_config([LayerInfo("relu", "Relu")])


def test_layers_that_share_a_name_are_left_out(layers, caplog):
    config = create_config([*layers, LayerInfo("fc", "Gemm", LayerKind.GEMM, weight_shape=(4, 4))])
    assert "fc" not in config.layers
    assert "several nodes have this name" in caplog.text


def test_nobody_is_told_of_shared_names_of_layers_that_are_never_quantized(layers, caplog):
    create_config([*layers, LayerInfo("relu", "Relu"), LayerInfo("relu", "Relu")])
    assert "several nodes" not in caplog.text


def test_a_layer_named_like_a_setting_is_left_out(layers, caplog):
    config = create_config([*layers, LayerInfo("batch_num", "Gemm", LayerKind.GEMM, weight_shape=(4, 4))])
    assert "batch_num" not in config.layers
    assert "a setting of this name" in caplog.text


def test_a_model_whose_layers_are_all_refused_says_why():
    refused = [LayerInfo(f"fc{n}", "Gemm", LayerKind.GEMM, refusal="its weight is not constant") for n in range(7)]
    with pytest.raises(ConfigError) as caught:
        create_config([LayerInfo("relu", "Relu"), *refused])
    listed = "; ".join(f"'fc{n}': its weight is not constant" for n in range(5))
    assert str(caught.value) == f"the model has no layer that can be quantized: {listed}; and 2 more"
