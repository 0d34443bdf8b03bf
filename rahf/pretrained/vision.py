"""Published vision towers of every supported family, told apart by the `model_type` of their `config.json`."""

from __future__ import annotations

import os

from rahf.config import ViTConfig
from rahf.nn import functional
from rahf.pretrained import clip, dinov2, dinov3, siglip, siglip2, source, towers, vit
from rahf.pretrained.positions import Interpolation
from rahf.pretrained.source import WeightsSource
from rahf.pretrained.towers import PublishedTower, TowerFamily

#: The family of each `model_type`.
_MODULES = (vit, siglip, siglip2, dinov2, dinov3, clip)
FAMILIES = {kind: module.FAMILY for module in _MODULES for kind in module.FAMILY.model_types}


def _family(weights: WeightsSource) -> TowerFamily:
    return FAMILIES[source.read_config(weights, tuple(FAMILIES))["model_type"]]


def published_vision(name: str | os.PathLike | WeightsSource, revision: str | None = None) -> PublishedTower:
    """Sizes and normalisation of a published tower, from its `config.json` and `preprocessor_config.json`."""
    weights = source.locate(name, revision)
    return towers.published_tower(_family(weights), weights)


def load_vision(
    name: str | os.PathLike | WeightsSource,
    config: ViTConfig,
    image_size: int,
    *,
    revision: str | None = None,
    interpolation: Interpolation = "bicubic",
) -> functional.Params:
    """Loads a tower of any supported family; arguments, result and errors as of `towers.load_tower`."""
    weights = source.locate(name, revision)
    return towers.load_tower(_family(weights), weights, config, image_size, interpolation=interpolation)
