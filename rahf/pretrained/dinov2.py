"""DINOv2 vision towers in the Hugging Face layout (Oquab et al. 2023)."""

from __future__ import annotations

from typing import Any, Iterable

from rahf.config import ViTConfig
from rahf.core.errors import PretrainedError
from rahf.nn import functional
from rahf.pretrained import towers
from rahf.pretrained.source import Source
from rahf.pretrained.towers import Interpolation, Published
from rahf.pretrained.vit import NAMES as VIT_NAMES

NAMES = VIT_NAMES._replace(
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


def _read(tree: dict[str, Any], where: str) -> Published:
    if tree.get("use_swiglu_ffn"):
        raise PretrainedError(f"{where}: use_swiglu_ffn (DINOv2-giant) is not supported; use small, base or large")
    tree = {**_DEFAULTS, **tree}
    tree["intermediate_size"] = int(tree["hidden_size"] * tree["mlp_ratio"])
    found = towers.sizes(tree, where, {}, class_token=True, layer_scale=True)
    # Means and deviations of ImageNet.
    return found._replace(image_mean=(0.485, 0.456, 0.406), image_std=(0.229, 0.224, 0.225))


def _prefix(stored: Iterable[str]) -> str:
    return "dinov2." if any(name.startswith("dinov2.") for name in stored) else ""


FAMILY = towers.Family(
    model_types=("dinov2",),
    names=NAMES,
    unused=("embeddings.mask_token", "dinov2.embeddings.mask_token", "classifier.*"),
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
    """Loads a DINOv2 tower (``facebook/dinov2-base``); see `vit.load`.

    Its config has patch size 14 and `layer_scale`. Towers with registers and DINOv2-giant are refused.
    """
    return towers.load(FAMILY, name, config, image_size, revision=revision, interpolation=interpolation)
