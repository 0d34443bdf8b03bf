"""DINOv2 vision towers in the Hugging Face layout (Oquab et al. 2023).

Towers of patch size 14 with `layer_scale` (``facebook/dinov2-base``). Those with registers and DINOv2-giant are
refused.
"""

from __future__ import annotations

from typing import Any

from rahf.core.errors import PretrainedError
from rahf.pretrained import towers, vit
from rahf.pretrained.towers import PublishedTower, TowerFamily

NAMES = vit.NAMES._replace(
    norm1="norm1",
    norm2="norm2",
    wi="mlp.fc1",
    wo="mlp.fc2",
    scale1="layer_scale1.lambda1",
    scale2="layer_scale2.lambda1",
)

_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 14,
}


def _read(tree: dict[str, Any], where: str) -> PublishedTower:
    if tree.get("use_swiglu_ffn"):
        raise PretrainedError(f"{where}: use_swiglu_ffn (DINOv2-giant) is not supported; use small, base or large")
    tree = {**_DEFAULTS, **tree}
    tree["intermediate_size"] = int(tree["hidden_size"] * tree["mlp_ratio"])
    published = towers.read_sizes(tree, where, {}, class_token=True, layer_scale=True)
    # Means and deviations of ImageNet.
    return published._replace(image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225))


FAMILY = TowerFamily(
    model_types=("dinov2",),
    names=NAMES,
    unused=("embeddings.mask_token", "dinov2.embeddings.mask_token", "classifier.*"),
    read=_read,
    prefix="dinov2.",
)
