"""Simplified configurations: protobuf text."""

import pytest

from twinquant.config import create_config
from twinquant.errors import ConfigError


@pytest.fixture
def create(layers, tmp_path):
    def create(text, **kwargs):
        path = tmp_path / "quant.cfg"
        path.write_text(text)
        return create_config(layers, definition=path, **kwargs)

    return create


@pytest.fixture
def error_of(create):
    def error_of(text):
        with pytest.raises(ConfigError) as caught:
            create(text)
        return caught.value

    return error_of


def test_an_empty_definition_changes_nothing(create, layers):
    assert create("") == create_config(layers)


def test_settings_of_the_whole_model(create):
    config = create(
        """
        # global settings
        batch_num : 4
        activation_offset : false
        do_fusion : false
        skip_layers : "stem"
        skip_layers : "up"
        skip_layer_types : "AveragePool"
        skip_fusion_layers : "body"
        fakequant_precision_mode : FORCE_FP16_QUANT
        """
    )
    assert (config.batch_num, config.activation_offset, config.do_fusion) == (4, False, False)
    assert config.skip_fusion_layers == ("body",)
    assert config.fakequant_precision_mode == "FORCE_FP16_QUANT"
    assert {name for name, layer in config.layers.items() if not layer.quant_enable} == {"stem", "up", "pool"}


def test_the_definition_wins_over_the_arguments(create):
    config = create("batch_num: 4 activation_offset: false", batch_num=2, activation_offset=True)
    assert (config.batch_num, config.activation_offset) == (4, False)


def test_what_the_definition_leaves_out_is_taken_from_the_arguments(create):
    assert create("do_fusion: false", batch_num=2).batch_num == 2


def test_every_setting_of_a_block(create):
    config = create(
        """
        override_layer_configs {
          layer_name: "stem"
          calibration_config {
            ada_quantize { num_iteration: 5 reg_param: 0.02 beta_range_start: 30 beta_range_end: 3 warm_start: 0.3
                           channel_wise: false }
            ifmr_quantize { search_range_start: 0.8 search_range_end: 1.2 search_step: 0.02 max_percentile: 0.99
                            min_percentile: 0.98 asymmetric: false dst_type: INT16 }
            dmq_balancer { migration_strength: 0.6 }
          }
        }
        override_layer_configs {
          layer_name: "body"
          calibration_config {
            arq_quantize { channel_wise: false quant_bits: 7 }
            hfmg_quantize { num_of_bins: 2048 asymmetric: false dst_type: INT8 }
            dmq_balancer { }
          }
        }
        """
    )
    stem, body = config.layers["stem"], config.layers["body"]
    activation, weight = stem.activation, stem.weight
    assert (weight.algorithm, weight.num_iteration, weight.reg_param) == ("ada_quantize", 5, 0.02)
    assert (weight.beta_range, weight.warm_start, weight.channel_wise) == ((30, 3), 0.3, False)
    # The decimal numbers as written, although the fields are float32.
    assert (activation.search_range, activation.search_step) == ((0.8, 1.2), 0.02)
    assert (activation.max_percentile, activation.min_percentile) == (0.99, 0.98)
    assert (activation.algorithm, activation.asymmetric, activation.num_bits) == ("ifmr", False, 16)
    assert stem.dmq_migration_strength == 0.6
    assert (body.weight.algorithm, body.weight.channel_wise, body.weight.num_bits) == ("arq_quantize", False, 7)
    assert (body.activation.algorithm, body.activation.num_of_bins) == ("hfmg", 2048)
    assert body.dmq_migration_strength == 0.5


def test_a_range_given_at_one_end_keeps_the_default_at_the_other(create):
    config = create("common_config { ifmr_quantize { search_range_start: 0.9 } }")
    assert config.layers["stem"].activation.search_range == (0.9, 1.3)


PRIORITIES = """
activation_offset: true
common_config { ifmr_quantize { search_step: 0.02 } arq_quantize { quant_bits: 4 } }
override_layer_types { layer_type: "Conv" calibration_config { ifmr_quantize { search_step: 0.03 } } }
override_layer_configs { layer_name: "stem" calibration_config { ifmr_quantize { search_step: 0.04 } } }
"""


def test_a_layers_block_wins_over_its_types_and_that_over_the_common_one(create):
    config = create(PRIORITIES)
    steps = {name: layer.activation.search_step for name, layer in config.layers.items()}
    assert (steps["stem"], steps["body"], steps["fc"]) == (0.04, 0.03, 0.02)


def test_what_a_block_leaves_out_has_its_default_whatever_the_common_block_says(create):
    config = create(PRIORITIES)
    assert (config.layers["body"].weight.num_bits, config.layers["fc"].weight.num_bits) == (8, 4)


LAYER_BLOCKS = """
    override_layer_configs { layer_name: "stem" calibration_config { ifmr_quantize { search_step: 0.02 } } }
    override_layer_configs { layer_name: "body" calibration_config { hfmg_quantize { } } }
    override_layer_configs { layer_name: "fc" calibration_config { ifmr_quantize { asymmetric: true } } }
"""


@pytest.mark.parametrize(
    "wider",
    [
        "activation_offset: false",
        "common_config { ifmr_quantize { asymmetric: false } }",
        """override_layer_types { layer_type: "Conv" calibration_config { ifmr_quantize { asymmetric: false } } }
           override_layer_types { layer_type: "Gemm" calibration_config { ifmr_quantize { asymmetric: false } } }""",
    ],
    ids=["activation_offset", "common", "type"],
)
def test_asymmetric_is_taken_from_the_narrowest_block_that_says_it_whatever_the_algorithm(create, wider):
    config = create(wider + LAYER_BLOCKS)
    found = {name: config.layers[name].activation.asymmetric for name in ("stem", "body", "fc")}
    assert found == {"stem": False, "body": False, "fc": True}


def test_the_type_says_more_about_asymmetric_than_the_common_block(create):
    config = create(
        """
        common_config { hfmg_quantize { asymmetric: false } }
        override_layer_types { layer_type: "Conv" calibration_config { ifmr_quantize { asymmetric: true } } }
        override_layer_configs { layer_name: "stem" calibration_config { hfmg_quantize { } } }
        """
    )
    assert config.layers["stem"].activation.asymmetric
    assert not config.layers["fc"].activation.asymmetric


@pytest.mark.parametrize(
    ("skipping", "block", "path"),
    [
        (
            'skip_layers: "stem"',
            'override_layer_configs { layer_name: "stem"',
            "$.override_layer_configs[0].layer_name",
        ),
        (
            'skip_layer_types: "Conv"',
            'override_layer_types { layer_type: "Conv"',
            "$.override_layer_types[0].layer_type",
        ),
    ],
)
def test_a_block_for_what_is_skipped_is_a_contradiction(create, skipping, block, path):
    with pytest.raises(ConfigError, match="is skipped by") as caught:
        create(f"{skipping} {block} calibration_config {{ ifmr_quantize {{ }} }} }}")
    assert caught.value.path == path


@pytest.mark.parametrize(
    ("word", "names"),
    [
        ("Conv", {"stem", "body", "volume"}),
        ("Conv2d", {"stem", "body"}),
        ("Conv3d", {"volume"}),
        ("ConvTranspose2d", {"up"}),
        ("Linear", {"fc", "out"}),
        ("InnerProduct", {"fc", "out"}),
        ("Gemm", {"fc"}),
        ("MatMul", {"out"}),
        ("AvgPool2d", {"pool"}),
        ("LSTM", {"rnn"}),
    ],
)
def test_types_are_known_by_the_words_of_every_framework(create, word, names):
    config = create(f'skip_layer_types: "{word}"')
    assert {name for name, layer in config.layers.items() if not layer.quant_enable} == names


def test_a_block_for_a_type_that_the_model_lacks_is_no_error(create, layers):
    text = 'override_layer_types { layer_type: "GRU" calibration_config { hfmg_quantize { } } }'
    assert create(text) == create_config(layers)


def test_16_bits_for_all_reach_what_the_reference_implementation_widens(create):
    # Measured on the reference implementation: INT16 for all and for "Linear" leaves a MatMul's record at INT8.
    config = create(
        """
        common_config { ifmr_quantize { dst_type: INT16 } }
        override_layer_types { layer_type: "Linear" calibration_config { ifmr_quantize { dst_type: INT16 } } }
        """
    )
    wide = {name for name, layer in config.layers.items() if layer.activation.num_bits == 16}
    assert wide == {"stem", "body", "up", "fc"}


def test_4_bits_leave_layers_with_an_odd_number_of_input_channels_at_8(create, caplog):
    # Measured on the reference implementation: a depthwise convolution's record says INT8 where INT4 was asked for.
    config = create("common_config { arq_quantize { quant_bits: 4 } }")
    assert {name for name, layer in config.layers.items() if layer.weight.num_bits == 8} == {"stem", "pool"}
    assert "'stem' has an odd number of them (3)" in caplog.text


def test_6_bits_for_all_reach_two_dimensional_convolutions(create):
    config = create("common_config { arq_quantize { quant_bits: 6 } }")
    assert {name for name, layer in config.layers.items() if layer.weight.num_bits == 6} == {"stem", "body"}


def test_channel_wise_for_all_gives_way_but_for_a_type_that_has_one_scale_is_an_error(create, error_of):
    assert not create("common_config { arq_quantize { channel_wise: true } }").layers["fc"].weight.channel_wise
    text = 'override_layer_types { layer_type: "Linear" calibration_config { arq_quantize { channel_wise: true } } }'
    assert error_of(text).path == "$.override_layer_types[0].calibration_config.arq_quantize.channel_wise"


def test_an_unknown_field_names_position_path_and_close_names(error_of):
    error = error_of('batch_num: 1\ncommon_config {\n  # { "\n  ifmr_quantize { search_stepp: 0.1 }\n}')
    assert error.path == "$.common_config.ifmr_quantize.search_stepp"
    assert "quant.cfg, line 4, column 19" in str(error)
    assert "did you mean 'search_step'" in str(error)


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("batch_num: 0", "$.batch_num"),
        ("batch_num: two", "$.batch_num"),
        ("batch_num: 1 batch_num: 2", "$.batch_num"),
        ("common_config { ifmr_quantize { dst_type: INT9 } }", "$.common_config.ifmr_quantize.dst_type"),
        ("common_config { ifmr_quantize { } hfmg_quantize { } }", "$.common_config.hfmg_quantize"),
        ("common_config { arq_quantize { } ada_quantize { } }", "$.common_config.ada_quantize"),
        ("common_config { arq_quantize { quant_bits: 5 } }", "$.common_config.arq_quantize.quant_bits"),
        ("common_config { ifmr_quantize { search_step: 1 } }", "$.common_config.ifmr_quantize.search_step"),
        ("common_config { ifmr_quantize { search_range_end: 0.6 } }", "$.common_config.ifmr_quantize.search_range_end"),
        (
            "common_config { dmq_balancer { migration_strength: 0.1 } }",
            "$.common_config.dmq_balancer.migration_strength",
        ),
        ("common_config {", "$.common_config"),
        ('skip_layers: "stemm"', "$.skip_layers"),
        ('skip_layer_types: "Relu"', "$.skip_layer_types"),
        ('skip_fusion_layers: "nothing"', "$.skip_fusion_layers"),
        ('override_layer_types { layer_type: "Conv" }', "$.override_layer_types[0].calibration_config"),
        ("override_layer_configs { calibration_config { } }", "$.override_layer_configs[0].layer_name"),
        (
            'override_layer_configs { layer_name: "relu" calibration_config { } }',
            "$.override_layer_configs[0].layer_name",
        ),
        (
            'override_layer_types { layer_type: "Conv" calibration_config { } } '
            'override_layer_types { layer_type: "Conv" calibration_config { } }',
            "$.override_layer_types[1].layer_type",
        ),
        (
            'override_layer_types { layer_type: "Gemm" calibration_config { } } '
            'override_layer_types { layer_type: "Linear" calibration_config { } }',
            "$.override_layer_types[1].layer_type",
        ),
    ],
)
def test_an_error_has_the_path_of_the_setting(error_of, text, path):
    assert error_of(text).path == path


def test_a_missing_file(layers, tmp_path):
    with pytest.raises(ConfigError, match="there is no configuration file"):
        create_config(layers, definition=tmp_path / "quant.cfg")


def test_a_folder(layers, tmp_path):
    with pytest.raises(ConfigError, match="is a folder"):
        create_config(layers, definition=tmp_path)


def test_a_binary_file(layers, tmp_path):
    path = tmp_path / "quant.cfg"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not text in UTF-8"):
        create_config(layers, definition=path)
