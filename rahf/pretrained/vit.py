"""ViT in the layout of `google/vit-*` on the Hugging Face hub (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from typing import Any

from rahf.pretrained import towers
from rahf.pretrained.towers import PublishedTower, TensorNames, TowerFamily

NAMES = TensorNames(
    patch="embeddings.patch_embeddings.projection",
    position="embeddings.position_embeddings",
    class_token="embeddings.cls_token",
    norm="layernorm",
    layer="encoder.layer.{}.",
    query="attention.attention.query",
    key="attention.attention.key",
    value="attention.attention.value",
    out="attention.output.dense",
    norm1="layernorm_before",
    norm2="layernorm_after",
    wi="intermediate.dense",
    wo="output.dense",
)

_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "image_size": 224,
    "patch_size": 16,
}


def _read(tree: dict[str, Any], where: str) -> PublishedTower:
    return towers.read_sizes(tree, where, _DEFAULTS, class_token=True)


FAMILY = TowerFamily(
    model_types=("vit",),
    names=NAMES,
    # The pooler and the classifier read the class token for other tasks; the mask token is for pretraining.
    unused=("pooler.*", "vit.pooler.*", "classifier.*", "embeddings.mask_token", "vit.embeddings.mask_token"),
    read=_read,
    prefix="vit.",
)
