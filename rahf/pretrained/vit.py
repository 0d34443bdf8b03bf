"""ViT in the layout of `google/vit-*` on the Hugging Face hub (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from typing import Any, Iterable

from rahf.config import ViTConfig
from rahf.nn import functional
from rahf.pretrained import towers
from rahf.pretrained.source import Source
from rahf.pretrained.towers import Interpolation, Names, Published

NAMES = Names(
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


def _read(tree: dict[str, Any], where: str) -> Published:
    return towers.sizes(tree, where, _DEFAULTS, class_token=True)


def _prefix(stored: Iterable[str]) -> str:
    return "vit." if any(name.startswith("vit.embeddings.") for name in stored) else ""


FAMILY = towers.Family(
    model_types=("vit",),
    names=NAMES,
    # The pooler and the classifier read the class token for other tasks; the mask token is for pretraining.
    unused=("pooler.*", "vit.pooler.*", "classifier.*", "embeddings.mask_token", "vit.embeddings.mask_token"),
    read=_read,
    prefix=_prefix,
)


def published(name: str | Source, revision: str | None = None) -> Published:
    """Sizes and normalisation of a published ViT, from its `config.json` and `preprocessor_config.json`."""
    return towers.published(FAMILY, name, revision)


def load(
    name: str | Source,
    config: ViTConfig,
    image_size: int,
    *,
    revision: str | None = None,
    interpolation: Interpolation = "bicubic",
) -> functional.Params:
    """Loads a published ViT.

    Args:
      name: folder, hub id (``google/vit-large-patch16-384``) or located source.
      config: sizes must be the checkpoint's, `layer_norm_eps` too (1e-12 in all of Google's); with
        `class_token` False the class token and its position are left out.
      image_size: side in pixels; position embeddings are interpolated to another grid if need be.
      revision: branch, tag or commit of a hub id.
      interpolation: "bicubic" is what `transformers` does.

    Returns:
      Parameters of `rahf.nn.vit.ViT(config, image_size)`, float32.

    Raises:
      PretrainedError: another family or size, tensors missing, extra, misshapen or not finite.
    """
    return towers.load(FAMILY, name, config, image_size, revision=revision, interpolation=interpolation)
