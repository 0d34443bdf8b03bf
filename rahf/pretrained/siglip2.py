"""SigLIP 2 for varying sizes ("naflex"; Tschannen et al. 2025; ``google/siglip2-base-patch16-naflex``), for squares.

The patch embedding is a matrix, and the positions of a square of patches are interpolated to the grid of the image.
Images of `rahf` are squares, so the tower is an ordinary one. Fixed sizes of SigLIP 2 have the layout of
`rahf.pretrained.siglip`.
"""

from __future__ import annotations

import math
from typing import Any

from rahf.core.errors import PretrainedError
from rahf.pretrained import siglip, towers
from rahf.pretrained.towers import PublishedTower, TowerFamily

_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "patch_size": 16,
    "num_patches": 256,
}


def _read(tree: dict[str, Any], where: str) -> PublishedTower:
    # The config of a whole SigLIP 2 has the tower's sizes in a part of their own.
    tower = _DEFAULTS | (tree.get("vision_config", {}) if tree["model_type"] == "siglip2" else tree)
    side = math.isqrt(tower["num_patches"])
    if side**2 != tower["num_patches"]:
        raise PretrainedError(f"{where}: num_patches is {tower['num_patches']}, expected a square number")
    tower["image_size"] = side * tower["patch_size"]
    published = towers.read_sizes(tower, where, {}, class_token=False)
    return published._replace(linear_patches=True, antialias=True)


FAMILY = TowerFamily(
    model_types=("siglip2", "siglip2_vision_model"),
    names=siglip.NAMES,
    unused=("text_model.*", "logit_scale", "logit_bias", "vision_model.head.*", "head.*"),
    read=_read,
    prefix="vision_model.",
)
