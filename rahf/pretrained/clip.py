"""CLIP (Radford et al. 2021) in the Hugging Face layout: OpenAI's, OpenCLIP's as converted, PickScore's (CLIP-H)."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from typing import Any, Iterable, NamedTuple

from rahf.config import ClipBaselineConfig, ClipConfig, ClipTextConfig, ViTConfig
from rahf.core.errors import PretrainedError
from rahf.critic.networks import build
from rahf.nn import functional
from rahf.pretrained import files, source, strict, towers
from rahf.pretrained.source import Source
from rahf.pretrained.towers import Names, Published
from rahf.text.clip import ClipTokenizer
from rahf.text.vocabulary import load_clip as load_tokenizer

_BLOCK = dict(
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
NAMES = Names(
    patch="embeddings.patch_embedding",
    position="embeddings.position_embedding.weight",
    class_token="embeddings.class_embedding",
    norm="post_layernorm",
    pre_norm="pre_layrnorm",  # so spelt in the layout
    **_BLOCK,
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


def _read(tree: dict[str, Any], where: str) -> Published:
    inner = _part(tree, "vision_config", _VISION_DEFAULTS) if tree["model_type"] == "clip" else tree
    made = towers.sizes(inner, where, _VISION_DEFAULTS, class_token=True, pre_norm=True)
    return made._replace(image_mean=MEAN, image_std=STD, patch_bias=False)


def _prefix(stored: Iterable[str]) -> str:
    return "vision_model." if any(name.startswith("vision_model.") for name in stored) else ""


#: The image tower alone, for `rahf.pretrained.load_vision`: it serves the paper's network as well.
FAMILY = towers.Family(
    model_types=("clip", "clip_vision_model"),
    names=NAMES,
    unused=("text_model.*", "*text_projection.weight", "*visual_projection.weight", "logit_scale", _POSITION_IDS),
    read=_read,
    prefix=_prefix,
)


def published_vision(name: str | Source, revision: str | None = None) -> Published:
    """Sizes and normalisation of the image tower."""
    return towers.published(FAMILY, name, revision)


class PublishedClip(NamedTuple):
    """A published CLIP: image tower with its normalisation, text tower, width of the joint embedding."""

    vision: Published
    text: ClipTextConfig
    width: int

    def model(self, **clip: Any) -> ClipBaselineConfig:
        """The configuration of a network of kind "clip" around it; `clip` are fields of `ClipConfig`."""
        return ClipBaselineConfig(image_size=self.vision.image_size,
            vit=self.vision.vit,
            clip=ClipConfig(text=self.text, width=self.width, **clip),
            image_mean=self.vision.image_mean,
            image_std=self.vision.image_std,
        )


def published(name: str | Source, revision: str | None = None) -> PublishedClip:
    """Reads the sizes of both towers, no weights. Raises PretrainedError for another family."""
    found = source.locate(name, revision)
    tree = source.read_config(found, ("clip",))
    where = str(found.folder / "config.json")
    inner = _part(tree, "text_config", _TEXT_DEFAULTS)
    text = ClipTextConfig(
        vocab_size=inner["vocab_size"],
        positions=inner["max_position_embeddings"],
        width=inner["hidden_size"],
        depth=inner["num_hidden_layers"],
        heads=inner["num_attention_heads"],
        mlp_width=inner["intermediate_size"],
        layer_norm_eps=inner["layer_norm_eps"],
        activation=towers.activation(inner["hidden_act"], where),
        eos_token_id=inner["eos_token_id"],
    )
    return PublishedClip(published_vision(found), text, tree.get("projection_dim", 512))


def load(name: str | Source, config: ClipBaselineConfig, *, revision: str | None = None) -> functional.Params:
    """Loads both towers and their projections.

    Args:
      name: folder, hub id (``openai/clip-vit-large-patch14``) or located source.
      config: of kind "clip"; sizes must be the checkpoint's. Position embeddings of the image tower are
        interpolated to `image_size` if need be.
      revision: branch, tag or commit of a hub id.

    Returns:
      Parameters of `rahf.critic.networks.clip.Clip(config)`, float32, without those of trained scores.

    Raises:
      PretrainedError: another family or size, tensors missing, extra, misshapen or not finite.
    """
    found = source.locate(name, revision)
    there, where = published(found), str(found.folder)
    strict.compare(there.vision.vit, config.vit, (*towers.COMPARED, "class_token"), "model.vit", where)
    text = config.clip.text
    if {there.text.eos_token_id, text.eos_token_id} == {2, text.vocab_size - 1}:  # two names of the highest id
        text = dataclasses.replace(text, eos_token_id=there.text.eos_token_id)
    strict.compare(there.text, text, tuple(f.name for f in dataclasses.fields(text)), "model.clip.text", where)
    strict.compare(there.model().clip, config.clip, ("width",), "model.clip", where)
    taker = strict.Taker(files.open_folder(found), where)
    taker.drop(_POSITION_IDS)
    width, vision = config.clip.width, there.vision
    params = {
        "vit": towers.convert(taker.under("vision_model."), NAMES, vision, config.vit, config.image_size),
        "text": _text(taker.under("text_model."), config.clip.text),
        "image_projection": taker.linear("visual_projection", config.vit.width, width, bias=False),
        "text_projection": taker.linear("text_projection", config.clip.text.width, width, bias=False),
        "logit_scale": taker.take("logit_scale", ()),
    }
    taker.finish()
    _, expected = functional.abstract(build.build(config))
    strict.check_complete(params, {n: p for n, p in expected.items() if not n.startswith("score_")}, where)
    return params


def _text(taker: strict.Taker, config: ClipTextConfig) -> functional.Params:
    # The blocks are those of the image tower.
    block = ViTConfig(width=config.width, heads=config.heads, mlp_width=config.mlp_width)
    layers = {
        f"layer_{number}": towers.block(taker.under(NAMES.layer.format(number)), NAMES, block, True)
        for number in range(config.depth)
    }
    embeddings = {
        "embedding": taker.take("embeddings.token_embedding.weight", (config.vocab_size, config.width)),
        "position": taker.take("embeddings.position_embedding.weight", (config.positions, config.width)),
    }
    return {**embeddings, **layers, "norm": taker.norm("final_layer_norm", config.width)}


def tokenizer(name: str | os.PathLike | Source, *, revision: str | None = None) -> ClipTokenizer:
    """The vocabulary beside a published CLIP: `tokenizer.json`, or `vocab.json` and `merges.txt`.

    Args:
      name: folder, located source, or hub id, of which only these files are fetched.

    Raises:
      PretrainedError: none there, or not a CLIP's.
    """
    if isinstance(name, Source):
        folder = name.folder
    elif pathlib.Path(name).is_dir():
        folder = pathlib.Path(name)
    else:
        folder = source.locate(name, revision, only=_VOCABULARY).folder
    try:
        return load_tokenizer(folder)
    except (OSError, ValueError) as error:
        raise PretrainedError(f"{error}; name another folder or hub id for the vocabulary") from error
