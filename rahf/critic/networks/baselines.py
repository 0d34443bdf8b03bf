"""The baselines of the paper's tables, behind the interface of `rahf.models.rahf.Rahf`.

`image_tokens`, `fuse`, `heatmap_logits`, `score_logits`, `sequence_logits`, `generate` and the call itself mean
the same; what a baseline does not predict is NaN, or None for the target sequence (`rahf.models.kinds.outputs`).
"""

from __future__ import annotations

from typing import Callable

from flax import nnx

from rahf.config import ModelConfig
from rahf.models.baselines.clip import Clip
from rahf.models.baselines.resnet import ResNetBaseline


def build(config: ModelConfig) -> Callable[[], nnx.Module]:
    """A function that builds the configured baseline.

    Raises:
      ValueError: another `model.variant` than "multi-head".
    """
    if config.variant != "multi-head":
        raise ValueError(f"model.variant {config.variant!r} is for models of kind 'rahf', not {config.kind!r}")
    return lambda: {"resnet": ResNetBaseline, "clip": Clip}[config.kind](config)
