"""DINOv3 vision towers in the Hugging Face layout (Siméoni et al. 2025; ``facebook/dinov3-vitb16-pretrain-lvd1689m``).

They have rotary positions, so any image side that patches of 16 pixels divide fits without interpolation, and register
tokens between the class token and the patches. The largest ones have a gated feed-forward layer. DINOv3's ConvNeXts are
another layout and are refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rahf.core.errors import PretrainedError
from rahf.pretrained import towers
from rahf.pretrained.resnet import MEAN, STD
from rahf.pretrained.towers import PublishedTower, TensorNames, TowerFamily

NAMES = TensorNames(
    patch="embeddings.patch_embeddings",
    position=None,
    class_token="embeddings.cls_token",
    registers="embeddings.register_tokens",
    norm="norm",
    layer="layer.{}.",
    query="attention.q_proj",
    key="attention.k_proj",
    value="attention.v_proj",
    out="attention.o_proj",
    norm1="norm1",
    norm2="norm2",
    wi="mlp.up_proj",
    wo="mlp.down_proj",
    gate="mlp.gate_proj",
    scale1="layer_scale1.lambda1",
    scale2="layer_scale2.lambda1",
)

_DEFAULTS = {
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "intermediate_size": 1536,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "image_size": 224,
    "patch_size": 16,
}


def _read(tree: dict[str, Any], where: str) -> PublishedTower:
    theta = float(tree.get("rope_theta", 100.0))
    if theta <= 0:
        raise PretrainedError(f"{where}: rope_theta is {theta}, expected a positive number")
    published = towers.read_sizes(
        tree,
        where,
        _DEFAULTS,
        class_token=True,
        layer_scale=True,
        registers=tree.get("num_register_tokens", 0),
        rope_theta=theta,
        gated_mlp=tree.get("use_gated_mlp", False),
    )
    return published._replace(
        image_mean=MEAN,
        image_std=STD,
        qkv_bias=(tree.get("query_bias", True), tree.get("key_bias", False), tree.get("value_bias", True)),
        dense_bias=(tree.get("proj_bias", True), tree.get("mlp_bias", True)),
    )


def _layers_in(names: Iterable[str]) -> str:
    """Newer files call the layers ``model.layer.0`` and so on, the published ones ``layer.0``."""
    return "model." if any(name.startswith("model.layer.") for name in names) else ""


FAMILY = TowerFamily(
    model_types=("dinov3_vit",),
    names=NAMES,
    unused=("embeddings.mask_token", "rope_embeddings.*"),
    read=_read,
    prefix="",
    layers_in=_layers_in,
)
