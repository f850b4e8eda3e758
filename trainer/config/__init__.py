"""The settings of a run, from defaults, a TOML file and flags."""

from trainer.config.parse import config_differences, config_help, parse_config, placed_problems, to_dict, to_toml
from trainer.config.settings import TrainConfig

__all__ = ["TrainConfig", "config_differences", "config_help", "parse_config", "placed_problems", "to_dict", "to_toml"]
