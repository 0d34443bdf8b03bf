"""One table of the critic's networks: from a config to the module that it describes."""

from __future__ import annotations

from rahf.config import ModelConfig
from rahf.critic.networks.augmented_prompt import AugmentedRahf
from rahf.critic.networks.clip import Clip
from rahf.critic.networks.multi_head import Rahf
from rahf.critic.networks.resnet import ResNetBaseline
from rahf.diffusion.networks.pixel_unet import TextToImage
from rahf.nn import functional


def build(config: ModelConfig):
    """A function that builds the module of the configured kind; for `functional.init` and `abstract`."""
    if config.kind == "rahf":
        return lambda: (AugmentedRahf if config.variant == "augmented-prompt" else Rahf)(config)
    if config.variant != "multi-head":
        raise ValueError(f"model.variant {config.variant!r} is for models of kind 'rahf', not {config.kind!r}")
    return lambda: {"resnet": ResNetBaseline, "clip": Clip, "diffusion": TextToImage}[config.kind](config)


def parameter_table(config: ModelConfig) -> dict[str, int]:
    """Number of parameters by part, without allocating any."""
    _, params = functional.abstract(build(config))
    return {name: functional.count({name: params[name]}) for name in sorted(params)}
