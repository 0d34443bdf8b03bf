"""CLIP (Radford et al. 2021) in the Hugging Face layout: OpenAI's, OpenCLIP's as converted, PickScore's (CLIP-H)."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rahf.config import ClipTextConfig, ViTConfig
from rahf.core.errors import PretrainedError, TokenizerError
from rahf.nn import functional, vit
from rahf.nn.clip_text import TextTower
from rahf.pretrained import files, siglip, source, strict, towers
from rahf.pretrained.source import WeightsSource
from rahf.pretrained.towers import PublishedTower, TowerFamily
from rahf.text.clip import ClipTokenizer
from rahf.text.vocabulary import load_clip_tokenizer

#: Of both towers: SigLIP has the same layers, no class token, and no norm in front of them.
NAMES = siglip.NAMES._replace(
    class_token="embeddings.class_embedding",
    pre_norm="pre_layrnorm",  # so spelt in the layout
)

#: How OpenAI's images were normalised, for folders without `preprocessor_config.json`.
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_VISION_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "image_size": 224,
    "patch_size": 32,
}
_TEXT_DEFAULTS = {
    "vocab_size": 49408,
    "hidden_size": 512,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "intermediate_size": 2048,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
    "eos_token_id": 49407,
}
_POSITION_IDS = "*_model.embeddings.position_ids"  # a list of numbers in old files
_VOCABULARY = ("tokenizer.json", "vocab.json", "merges.txt")


def _part(tree: dict[str, Any], name: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """The config of one tower. Old files hold it twice; `<name>_dict`, completed by defaults, then counts."""
    older = tree.get(f"{name}_dict")
    return {**defaults, **(tree.get(name) or {}), **({**defaults, **older} if older is not None else {})}


def _read(tree: dict[str, Any], where: str) -> PublishedTower:
    inner = _part(tree, "vision_config", _VISION_DEFAULTS) if tree["model_type"] == "clip" else tree
    published = towers.read_sizes(inner, where, _VISION_DEFAULTS, class_token=True, pre_norm=True)
    return published._replace(image_mean=MEAN, image_std=STD, patch_bias=False)


#: The image tower alone, for `rahf.pretrained.vision`: it serves the paper's network as well.
FAMILY = TowerFamily(
    model_types=("clip", "clip_vision_model"),
    names=NAMES,
    unused=("text_model.*", "*text_projection.weight", "*visual_projection.weight", "logit_scale", _POSITION_IDS),
    read=_read,
    prefix="vision_model.",
)


class PublishedClip(NamedTuple):
    """A published CLIP: image tower with its normalisation, text tower, width of the joint embedding."""

    vision: PublishedTower
    text: ClipTextConfig
    width: int


def published_clip(name: str | os.PathLike | WeightsSource, revision: str | None = None) -> PublishedClip:
    """Reads the sizes of both towers, no weights. Raises PretrainedError for another family."""
    weights = source.locate(name, revision)
    tree = source.read_config(weights, ("clip",))
    where = str(weights.folder / "config.json")
    text = text_config(_part(tree, "text_config", _TEXT_DEFAULTS), where)
    return PublishedClip(towers.published_tower(FAMILY, weights), text, tree.get("projection_dim", 512))


def text_config(tree: dict[str, Any], where: str) -> ClipTextConfig:
    """The text tower that a published config describes; fields that it leaves out have CLIP's defaults.

    Raises:
      PretrainedError: an activation that the tower lacks.
    """
    tree = {**_TEXT_DEFAULTS, **tree}
    return ClipTextConfig(
        vocab_size=tree["vocab_size"],
        positions=tree["max_position_embeddings"],
        width=tree["hidden_size"],
        depth=tree["num_hidden_layers"],
        heads=tree["num_attention_heads"],
        mlp_width=tree["intermediate_size"],
        layer_norm_eps=tree["layer_norm_eps"],
        activation=towers.activation(tree["hidden_act"], where),
        eos_token_id=tree["eos_token_id"],
    )


def load_clip(
    name: str | os.PathLike | WeightsSource,
    vision: ViTConfig,
    text: ClipTextConfig,
    width: int,
    image_size: int,
    *,
    revision: str | None = None,
) -> functional.Params:
    """Loads both towers and their projections.

    Args:
      name: folder, hub id (``openai/clip-vit-large-patch14``) or located source.
      vision: config of the network's image tower; sizes must be the checkpoint's, as those of `text` and `width`.
      text: config of its text tower.
      width: of the joint embedding.
      image_size: side in pixels; position embeddings of the image tower are interpolated to its grid of patches.
      revision: branch, tag or commit of a hub id.

    Returns:
      `vit`, `text`, `image_projection`, `text_projection` and `logit_scale`, float32.

    Raises:
      PretrainedError: another family or size, tensors missing, extra, misshapen or not finite.
    """
    weights = source.locate(name, revision)
    published, where = published_clip(weights), str(weights.folder)
    check_sizes(published, vision, text, width, where)
    taker = strict.Taker(files.open_folder(weights), where)
    taker.drop(_POSITION_IDS)
    tower = taker.under("vision_model.")
    params = {
        "vit": towers.convert_tower(tower, NAMES, published.vision, vision, image_size),
        "text": convert_text(taker.under("text_model."), text),
        "image_projection": taker.linear("visual_projection", vision.width, width, bias=False),
        "text_projection": taker.linear("text_projection", text.width, width, bias=False),
        "logit_scale": taker.take("logit_scale", ()),
    }
    taker.finish()
    strict.check_complete(params, expected_shapes(vision, text, width, image_size), where)
    return params


def check_sizes(published: PublishedClip, vision: ViTConfig, text: ClipTextConfig, width: int, where: str) -> None:
    """Raises PretrainedError, naming the fields, unless a published CLIP has the sizes of a network."""
    fields = (*towers.COMPARED, "class_token")
    strict.compare(published.vision.vit, vision, fields, "model.vit", where)
    if {published.text.eos_token_id, text.eos_token_id} == {2, text.vocab_size - 1}:  # two names of the highest id
        text = dataclasses.replace(text, eos_token_id=published.text.eos_token_id)
    fields = tuple(field.name for field in dataclasses.fields(text))
    strict.compare(published.text, text, fields, "model.clip.text", where)
    strict.compare(published, published._replace(width=width), ("width",), "model.clip", where)


def expected_shapes(vision: ViTConfig, text: ClipTextConfig, width: int, image_size: int) -> functional.Params:
    """Shapes of what `load_clip` returns."""
    dtype = jnp.dtype("float32")
    shape = lambda *sizes: np.broadcast_to(np.float32(0), sizes)
    return {
        "vit": functional.abstract(lambda: vit.ViT(vision, image_size, dtype=dtype))[1],
        "text": functional.abstract(lambda: TextTower(text, dtype=dtype))[1],
        "image_projection": {"kernel": shape(vision.width, width)},
        "text_projection": {"kernel": shape(text.width, width)},
        "logit_scale": shape(),
    }


def convert_text(taker: strict.Taker, config: ClipTextConfig) -> functional.Params:
    """Takes a text tower out of a checkpoint, as parameters of `rahf.nn.clip_text.TextTower`; `finish` must follow."""
    # Its blocks are those of an image tower.
    block = ViTConfig(width=config.width, heads=config.heads, mlp_width=config.mlp_width)
    layers = {
        f"layer_{number}": towers.convert_block(taker.under(NAMES.layer.format(number)), NAMES, block, True)
        for number in range(config.depth)
    }
    embeddings = {
        "embedding": taker.take("embeddings.token_embedding.weight", (config.vocab_size, config.width)),
        "position": taker.take("embeddings.position_embedding.weight", (config.positions, config.width)),
    }
    return {**embeddings, **layers, "norm": taker.norm("final_layer_norm", config.width)}


def published_clip_tokenizer(name: str | os.PathLike | WeightsSource, *, revision: str | None = None) -> ClipTokenizer:
    """The vocabulary beside a published CLIP: `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Args:
      name: folder, located source, or hub id, of which only these files are fetched.
      revision: branch, tag or commit of a hub id.

    Raises:
      PretrainedError: none there, or not a CLIP's.
    """
    if isinstance(name, WeightsSource):
        folder = name.folder
    elif pathlib.Path(name).is_dir():
        folder = pathlib.Path(name)
    else:
        folder = source.locate(name, revision, only=_VOCABULARY).folder
    try:
        return load_clip_tokenizer(folder)
    except (OSError, TokenizerError) as error:
        raise PretrainedError(f"{error}; name another folder or hub id for the vocabulary") from error
