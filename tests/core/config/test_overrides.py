"""Settings that are given in the call."""

import pytest

from twinquant.config import create_config
from twinquant.errors import ConfigError


def error_of(layers, overrides, **kwargs):
    with pytest.raises(ConfigError) as caught:
        create_config(layers, overrides=overrides, **kwargs)
    return caught.value


def test_an_override_for_all_layers_reaches_those_that_take_it(layers):
    config = create_config(layers, overrides={"activation_algorithm": "hfmg", "asymmetric": False, "batch_num": 8})
    assert config.batch_num == 8
    assert {layer.activation.algorithm for layer in config.layers.values()} == {"hfmg"}
    assert {layer.activation.num_of_bins for layer in config.layers.values()} == {4096}
    assert not any(layer.activation.asymmetric for layer in config.layers.values())


def test_an_override_for_one_layer_wins_over_the_one_for_all(layers):
    overrides = {"search_step": 0.02, "layers": {"stem": {"search_step": 0.05}, "fc": {"quant_enable": False}}}
    config = create_config(layers, overrides=overrides)
    assert config.layers["stem"].activation.search_step == 0.05
    assert config.layers["body"].activation.search_step == 0.02
    assert not config.layers["fc"].quant_enable


def test_an_override_wins_over_the_arguments(layers):
    assert create_config(layers, batch_num=2, overrides={"batch_num": 3}).batch_num == 3


def test_skipped_layers_of_call_and_overrides_add_up(layers):
    config = create_config(
        layers, skip_layers=["stem"], overrides={"skip_layers": ["fc"], "skip_layer_types": ["LSTM"]}
    )
    assert {name for name, layer in config.layers.items() if not layer.quant_enable} == {"stem", "fc", "rnn"}


def test_a_setting_that_one_algorithm_has_chooses_it(layers):
    config = create_config(layers, overrides={"layers": {"stem": {"num_of_bins": 8192}}})
    assert (config.layers["stem"].activation.algorithm, config.layers["stem"].activation.num_of_bins) == ("hfmg", 8192)


def test_another_algorithm_drops_the_settings_of_the_old_one(layers, tmp_path):
    definition = tmp_path / "quant.cfg"
    definition.write_text("common_config { ifmr_quantize { search_step: 0.05 asymmetric: false } }")
    config = create_config(layers, definition=definition, overrides={"activation_algorithm": "minmax"})
    assert config.layers["stem"].activation.algorithm == "minmax"
    assert config.layers["stem"].activation.search_step == 0.01
    assert not config.layers["stem"].activation.asymmetric


def test_a_setting_that_the_algorithm_below_has_does_not_change_it(layers):
    overrides = {
        "activation_algorithm": "percentile",
        "layers": {"stem": {"max_percentile": 0.9, "min_percentile": 0.9}},
    }
    activation = create_config(layers, overrides=overrides).layers["stem"].activation
    assert (activation.algorithm, activation.max_percentile) == ("percentile", 0.9)


def test_the_percentile_algorithm_has_the_default_of_onnx_runtime(layers):
    activation = create_config(layers, overrides={"activation_algorithm": "percentile"}).layers["stem"].activation
    assert (activation.max_percentile, activation.min_percentile) == (0.99999, 0.99999)


def test_settings_of_two_algorithms_contradict_each_other(layers):
    error = error_of(layers, {"activation_algorithm": "hfmg", "max_percentile": 0.9})
    assert error.path == "$.max_percentile"
    assert "contradicts act_algo 'hfmg', which has num_of_bins" in str(error)


def test_settings_that_no_algorithm_has_together_contradict_each_other(layers):
    error = error_of(layers, {"layers": {"stem": {"num_of_bins": 1024, "search_step": 0.1}}})
    assert error.path == "$.layers.stem.search_step"


def test_an_unknown_setting_suggests_close_names(layers):
    error = error_of(layers, {"activation_algoritm": "hfmg"})
    assert error.path == "$.activation_algoritm"
    assert "did you mean 'activation_algorithm'" in str(error)


def test_an_unknown_setting_of_a_layer(layers):
    assert error_of(layers, {"layers": {"stem": {"bits": 4}}}).path == "$.layers.stem.bits"


def test_an_unknown_layer_suggests_close_names(layers):
    error = error_of(layers, {"layers": {"boddy": {}}})
    assert error.path == "$.layers.boddy"
    assert "did you mean 'body'" in str(error)


def test_a_path_quotes_names_that_are_no_plain_words(layers):
    assert error_of(layers, {"layers": {"/block/conv 1": {}}}).path == '$.layers["/block/conv 1"]'


@pytest.mark.parametrize(
    ("layer", "setting", "value"),
    [
        ("fc", "channel_wise", True),
        ("pool", "channel_wise", True),
        ("pool", "dmq_migration_strength", 0.5),
        ("rnn", "dmq_migration_strength", 0.5),
        ("volume", "asymmetric", True),
        ("rnn", "activation_bits", 4),
        ("pool", "weight_bits", 4),
        ("rnn", "weight_algorithm", "ada_quantize"),
    ],
)
def test_what_a_layer_does_not_take_is_an_error_for_it_and_gives_way_for_all(layers, layer, setting, value):
    error = error_of(layers, {"layers": {layer: {setting: value}}})
    assert error.path == f"$.layers.{layer}.{setting}"
    everywhere = create_config(layers, overrides={setting: value})
    assert everywhere.layers[layer] == create_config(layers).layers[layer]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("activation_bits", 5),
        ("activation_bits", 8.0),
        ("weight_bits", 16),
        ("activation_algorithm", "kl"),
        ("weight_algorithm", "gptq"),
        ("asymmetric", 1),
        ("max_percentile", 0.5),
        ("min_percentile", 1.1),
        ("search_range", [1.3, 0.7]),
        ("search_range", [0, 1]),
        ("search_range", [0.7]),
        ("search_step", 0),
        ("search_step", float("nan")),
        ("num_of_bins", 1000),
        ("dmq_migration_strength", 0.9),
        ("fakequant_precision_mode", "FP16"),
        ("do_fusion", "yes"),
        ("reg_param", 1.0),
        ("beta_range", [2, 20]),
        ("warm_start", 0),
        ("num_iteration", -1),
        ("layers", ["stem"]),
        ("layers", {"stem": "hfmg"}),
        ("skip_layer_types", ["Relu"]),
    ],
)
def test_a_value_that_is_not_allowed_names_its_path(layers, setting, value):
    error = error_of(layers, {setting: value})
    assert error.path is not None
    assert error.path.startswith(f"$.{setting}")


@pytest.mark.parametrize("percentile", [0.500001, 1])
def test_the_ends_of_the_range_of_percentiles(layers, percentile):
    assert (
        create_config(layers, overrides={"max_percentile": percentile}).layers["stem"].activation.max_percentile > 0.5
    )


def test_a_step_as_wide_as_the_range_is_allowed(layers):
    # In binary, 1.3 - 0.7 is smaller than 0.6.
    config = create_config(layers, overrides={"search_range": [0.7, 1.3], "search_step": 0.6})
    assert config.layers["stem"].activation.search_step == 0.6


def test_a_step_wider_than_the_range_is_an_error(layers):
    error = error_of(layers, {"layers": {"stem": {"search_range": [0.9, 1.1]}}, "search_step": 0.3})
    assert error.path == "$.search_step"
    assert "[0.9, 1.1]" in str(error)


def test_fusion_can_be_skipped_for_convolutions_only(layers):
    config = create_config(layers, overrides={"skip_fusion_layers": ["stem", "up"]})
    assert config.skip_fusion_layers == ("stem", "up")
    assert "nothing is folded into 'fc', which is a Gemm" in str(error_of(layers, {"skip_fusion_layers": ["fc"]}))


@pytest.mark.parametrize("step", [1e-300, 1e-9, 5.9e-5])
def test_a_step_that_divides_the_range_into_too_many_is_an_error(layers, step):
    error = error_of(layers, {"layers": {"stem": {"search_step": step}}})
    assert error.path == "$.layers.stem.search_step"
    assert "into more than 10,000 steps, too many to search: give a step of 6e-05 or more" in str(error)


def test_ten_thousand_steps_are_allowed(layers):
    # (1.3 - 0.7) / 10,000
    assert create_config(layers, overrides={"search_step": 6e-5}).layers["stem"].activation.search_step == 6e-5


@pytest.mark.parametrize("name", [1, None, ("stem",)])
def test_a_layer_whose_name_is_no_text_is_an_error(layers, name):
    error = error_of(layers, {"layers": {name: {}}})
    assert error.path == "$.layers"
    assert f"layers have names, got {name!r}" in str(error)


def test_one_percentile_for_each_end_is_an_error_where_the_algorithm_takes_one_for_both(layers):
    error = error_of(layers, {"activation_algorithm": "percentile", "min_percentile": 0.98})
    assert error.path == "$.min_percentile"
    assert "max_percentile 0.99999 and min_percentile 0.98 differ" in str(error)
