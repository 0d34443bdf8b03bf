"""Configs: what a run is, as frozen dataclasses; a config file is Python that returns one."""

from typing import Any

from rahf.config import migrate
from rahf.config.augsal import AugsalConfig, AugsalLossConfig
from rahf.config.critic import (
    ClipBaselineConfig,
    ClipConfig,
    ClipTextConfig,
    ConvNextConfig,
    CriticConfig,
    EfficientNetConfig,
    HeatmapHeadConfig,
    ResNetBaselineConfig,
    ResNetConfig,
    ScoreHeadConfig,
    T5Config,
    ViTConfig,
)
from rahf.config.diffusion import PixelDiffusionConfig
from rahf.config.feedback import DdpoConfig, DraftConfig, FeedbackConfig
from rahf.config.gazefusion import GazeFusionConfig
from rahf.config.model import FamilyConfig, ImageModelConfig
from rahf.config.motion import MotionConfig, MotionRendererConfig
from rahf.config.read import find, from_dict, from_json, load, read_saved, to_json
from rahf.config.saliency import SaliencyConfig, SaliencyLossConfig
from rahf.config.schema import (
    AugmentConfig,
    Config,
    DataConfig,
    LoraConfig,
    LossConfig,
    MeshConfig,
    OptimizerConfig,
    StartConfig,
    TrainConfig,
)
from rahf.config.stable_diffusion import (
    AutoencoderKLConfig,
    AutoencoderTinyConfig,
    ControlNetConfig,
    PatchesConfig,
    SchedulerConfig,
    StableDiffusionConfig,
    UNetConfig,
)
from rahf.core.errors import ConfigError

#: Classes of version 0, which built the configs of all families; each call warns.
_FORMER = {"ModelConfig": migrate.model_config, "DiffusionConfig": migrate.diffusion_config}

__all__ = [
    "AugmentConfig",
    "AugsalConfig",
    "AugsalLossConfig",
    "AutoencoderKLConfig",
    "AutoencoderTinyConfig",
    "ClipBaselineConfig",
    "ClipConfig",
    "ClipTextConfig",
    "Config",
    "ConfigError",
    "ControlNetConfig",
    "ConvNextConfig",
    "CriticConfig",
    "DataConfig",
    "DdpoConfig",
    "DraftConfig",
    "EfficientNetConfig",
    "FamilyConfig",
    "FeedbackConfig",
    "GazeFusionConfig",
    "HeatmapHeadConfig",
    "ImageModelConfig",
    "LoraConfig",
    "LossConfig",
    "MeshConfig",
    "MotionConfig",
    "MotionRendererConfig",
    "OptimizerConfig",
    "PatchesConfig",
    "PixelDiffusionConfig",
    "ResNetBaselineConfig",
    "ResNetConfig",
    "SaliencyConfig",
    "SaliencyLossConfig",
    "SchedulerConfig",
    "ScoreHeadConfig",
    "StableDiffusionConfig",
    "StartConfig",
    "T5Config",
    "TrainConfig",
    "UNetConfig",
    "ViTConfig",
    "find",
    "from_dict",
    "from_json",
    "load",
    "read_saved",
    "to_json",
]


def __getattr__(name: str) -> Any:
    if name in _FORMER:
        return _FORMER[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
