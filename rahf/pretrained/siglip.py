"""SigLIP (Zhai et al. 2023) and fixed-size SigLIP 2 (Tschannen et al. 2025) vision towers, Hugging Face layout.

They have no class token and the activation "gelu-tanh" (``google/siglip2-large-patch16-384``). Checkpoints for
varying aspect ratios ("naflex") have another layout: `rahf.pretrained.siglip2`.
"""

from __future__ import annotations

from typing import Any

from rahf.pretrained import towers
from rahf.pretrained.towers import PublishedTower, TensorNames, TowerFamily

NAMES = TensorNames(
    patch="embeddings.patch_embedding",
    position="embeddings.position_embedding.weight",
    class_token=None,
    norm="post_layernorm",
    layer="encoder.layers.{}.",
    query="self_attn.q_proj",
    key="self_attn.k_proj",
    value="self_attn.v_proj",
    out="self_attn.out_proj",
    norm1="layer_norm1",
    norm2="layer_norm2",
    wi="mlp.fc1",
    wo="mlp.fc2",
)

_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 16,
}


def _read(tree: dict[str, Any], where: str) -> PublishedTower:
    # The config of a whole SigLIP has the tower's sizes in a part of their own.
    tower = tree.get("vision_config", {}) if tree["model_type"] == "siglip" else tree
    return towers.read_sizes(tower, where, _DEFAULTS, class_token=False)


FAMILY = TowerFamily(
    model_types=("siglip", "siglip_vision_model"),
    names=NAMES,
    # The text tower and the pooling head serve retrieval; position_ids is a list of numbers in old files.
    unused=(
        "text_model.*",
        "logit_scale",
        "logit_bias",
        "vision_model.head.*",
        "head.*",
        "vision_model.embeddings.position_ids",
    ),
    read=_read,
    prefix="vision_model.",
)
