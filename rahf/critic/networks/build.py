"""One table of the critic's networks: from a config to the module that it describes."""

from __future__ import annotations

from collections.abc import Callable

from flax import nnx

from rahf.config import ClipBaselineConfig, CriticConfig, FamilyConfig, ResNetBaselineConfig
from rahf.critic.networks.augmented_prompt import AugmentedRahf
from rahf.critic.networks.clip import Clip
from rahf.critic.networks.convolutional import ConvolutionalRahf
from rahf.critic.networks.multi_head import Rahf
from rahf.critic.networks.resnet import ResNetBaseline
from rahf.nn import functional


def build(config: FamilyConfig) -> Callable[[], nnx.Module]:
    """A function that builds the module of a critic family; for `functional.init` and `functional.abstract`.

    Raises:
      TypeError: the config of another family.
    """
    if isinstance(config, CriticConfig):
        return lambda: _critic_class(config)(config)
    if isinstance(config, ResNetBaselineConfig):
        return lambda: ResNetBaseline(config)
    if isinstance(config, ClipBaselineConfig):
        return lambda: Clip(config)
    raise TypeError(f"a {config.family!r} model is no critic")


def _critic_class(config: CriticConfig) -> type[Rahf]:
    if config.tower != "vit":
        return ConvolutionalRahf
    return AugmentedRahf if config.variant == "augmented-prompt" else Rahf


def parameter_table(config: FamilyConfig) -> dict[str, int]:
    """Number of parameters by part, without allocating any."""
    _, params = functional.abstract(build(config))
    return {name: functional.count({name: params[name]}) for name in sorted(params)}
