"""WHAT IS QUANTIZED HOW: the configuration, as JSON and as simplified protobuf text (.cfg)."""

from twinquant.config.builder import check_config, create_config, read_config
from twinquant.config.json_file import write_config
from twinquant.config.new_file import write_new_config
from twinquant.config.quant_config import ActivationConfig, LayerConfig, QuantConfig, WeightConfig

__all__ = [
    "ActivationConfig",
    "LayerConfig",
    "QuantConfig",
    "WeightConfig",
    "check_config",
    "create_config",
    "read_config",
    "write_config",
    "write_new_config",
]
