"""The one definition of every option (`parts`), and how configs are read, compared and hashed (`loading`)."""

from tutelage.config.loading import changed_keys, config_hash, load_config, option_table, parse_config, recipe_names
from tutelage.config.parts import (
    AnchorConfig,
    AugmentConfig,
    DataConfig,
    LabelConfig,
    LossConfig,
    ModelConfig,
    NormConfig,
    PostprocessConfig,
    PretrainConfig,
    PseudoConfig,
    RunConfig,
    RuntimeConfig,
    SourcesConfig,
    StudentConfig,
    TrainConfig,
)

__all__ = [
    "AnchorConfig",
    "AugmentConfig",
    "DataConfig",
    "LabelConfig",
    "LossConfig",
    "ModelConfig",
    "NormConfig",
    "PostprocessConfig",
    "PretrainConfig",
    "PseudoConfig",
    "RunConfig",
    "RuntimeConfig",
    "SourcesConfig",
    "StudentConfig",
    "TrainConfig",
    "changed_keys",
    "config_hash",
    "load_config",
    "option_table",
    "parse_config",
    "recipe_names",
]
