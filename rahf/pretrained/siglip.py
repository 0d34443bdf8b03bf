"""SigLIP (Zhai et al. 2023) and fixed-size SigLIP 2 (Tschannen et al. 2025) towers, Hugging Face layout."""

from __future__ import annotations

from typing import Any, Iterable

from rahf.config import ViTConfig
from rahf.nn import functional
from rahf.pretrained import towers
from rahf.pretrained.source import Source
from rahf.pretrained.towers import Interpolation, Names, Published

NAMES = Names(
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


def _read(tree: dict[str, Any], where: str) -> Published:
    # A whole SigLIP keeps the tower's sizes in a part of its own.
    inner = tree.get("vision_config", {}) if tree["model_type"] == "siglip" else tree
    return towers.sizes(inner, where, _DEFAULTS, class_token=False)


def _prefix(stored: Iterable[str]) -> str:
    return "vision_model." if any(name.startswith("vision_model.") for name in stored) else ""


FAMILY = towers.Family(
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
    prefix=_prefix,
)


def published(name: str | Source, revision: str | None = None) -> Published:
    """Sizes and normalisation of a published tower, from its `config.json` and `preprocessor_config.json`."""
    return towers.published(FAMILY, name, revision)


def load(
    name: str | Source,
    config: ViTConfig,
    image_size: int,
    *,
    revision: str | None = None,
    interpolation: Interpolation = "bicubic",
) -> functional.Params:
    """Loads the vision tower of a SigLIP checkpoint (``google/siglip2-large-patch16-384``); see `vit.load`.

    Its config has no class token and `activation` "gelu-tanh". Checkpoints for varying aspect ratios
    ("naflex") are another network and are refused.
    """
    return towers.load(FAMILY, name, config, image_size, revision=revision, interpolation=interpolation)
