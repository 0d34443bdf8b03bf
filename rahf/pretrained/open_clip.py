"""CLIP in OpenCLIP's own layout, as HPS v2 (Wu et al. 2023) is published: one state dict, sizes told by its shapes.

Blocks are ``visual.transformer.resblocks.N`` and ``transformer.resblocks.N``; query, key and value are one matrix,
``attn.in_proj_weight``; projections stand on the right, ``visual.proj`` and ``text_projection``.
"""

from __future__ import annotations

import functools
import math
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from rahf.config import ClipTextConfig, ViTConfig
from rahf.core.errors import PretrainedError
from rahf.nn import functional
from rahf.pretrained import clip, files, source, strict, towers
from rahf.pretrained.clip import MEAN, STD, PublishedClip
from rahf.pretrained.files import StoredTensor
from rahf.pretrained.source import WeightsSource
from rahf.pretrained.towers import PublishedTower, TensorNames

#: Of both towers. `_split` gives query, key and value names of their own.
NAMES = TensorNames(
    patch="conv1",
    position="positional_embedding",
    class_token="class_embedding",
    norm="ln_post",
    layer="transformer.resblocks.{}.",
    query="attn.in_proj_query",
    key="attn.in_proj_key",
    value="attn.in_proj_value",
    out="attn.out_proj",
    norm1="ln_1",
    norm2="ln_2",
    wi="mlp.c_fc",
    wo="mlp.c_proj",
    pre_norm="ln_pre",
)
_FUSED = ".attn.in_proj_"
_EPS = 1e-5  # of PyTorch's layer normalization, which the layout does not change


def locate(
    name: str | os.PathLike | WeightsSource, file: str = "open_clip_pytorch_model.bin", revision: str | None = None
) -> WeightsSource:
    """Finds a state dict.

    Args:
      name: the file; or a folder or hub id that holds `file`.
      file: its name there.
      revision: branch, tag or commit of a hub id.

    Raises:
      PretrainedError: no such file.
    """
    if isinstance(name, WeightsSource):
        return name
    if pathlib.Path(name).is_file():
        return WeightsSource(pathlib.Path(name), os.fspath(name))
    folder = source.locate(name, revision, only=(file, "README.md"), expected=f"a file, or a folder with {file}")
    if not (folder.folder / file).is_file():
        raise PretrainedError(f"{name}: no file {file} there; give the path of the file itself")
    return folder._replace(folder=folder.folder / file)


def published_open_clip(weights: WeightsSource, vit_heads: int | None = None) -> PublishedClip:
    """Reads the sizes of both towers from the shapes of the tensors, no weights.

    Args:
      weights: of `locate`.
      vit_heads: attention heads of the image tower, which shapes do not tell; None: as in OpenCLIP's published models,
        one per 64 channels, at most 16. Text towers have one per 64 channels.

    Raises:
      PretrainedError: another layout.
    """
    return _published(files.open_file(weights.folder), str(weights.folder), vit_heads)


def _published(tensors: Mapping[str, StoredTensor], where: str, vit_heads: int | None) -> PublishedClip:
    taker = strict.Taker(_split(tensors), where)
    visual = taker.under("visual.")
    width, _, patch, _ = visual.shape("conv1.weight", 4)
    _, tokens, _ = visual.shape("positional_embedding", 3)
    grid = math.isqrt(tokens - 1)
    if grid * grid != tokens - 1:
        raise PretrainedError(f"{where}: visual.positional_embedding has {tokens} rows, expected a square and 1")
    heads = min(max(width // 64, 1), 16) if vit_heads is None else vit_heads
    if heads < 1 or width % heads:
        raise PretrainedError(f"{where}: {heads} heads do not divide the image tower's {width} channels")
    vit = ViTConfig(
        patch_size=patch,
        width=width,
        depth=visual.count(f"{NAMES.layer}ln_1.weight"),
        heads=heads,
        mlp_width=visual.shape(NAMES.layer.format(0) + "mlp.c_fc.weight", 2)[0],
        layer_norm_eps=_EPS,
        activation="gelu",
        class_token=True,
        pre_norm=True,
    )
    vocab_size, text_width = taker.shape("token_embedding.weight", 2)
    text = ClipTextConfig(
        vocab_size=vocab_size,
        positions=taker.shape("positional_embedding", 2)[0],
        width=text_width,
        depth=taker.count(f"{NAMES.layer}ln_1.weight"),
        heads=max(text_width // 64, 1),
        mlp_width=taker.shape(NAMES.layer.format(0) + "mlp.c_fc.weight", 2)[0],
        layer_norm_eps=_EPS,
        activation="gelu",
        eos_token_id=vocab_size - 1,
    )
    tower = PublishedTower(vit, grid * patch, image_mean=MEAN, image_std=STD, patch_bias=False)
    return PublishedClip(tower, text, visual.shape("proj", 2)[1])


def load_open_clip(
    weights: WeightsSource, vision: ViTConfig, text: ClipTextConfig, width: int, image_size: int
) -> functional.Params:
    """Loads both towers and their projections.

    Args:
      weights: of `locate`.
      vision, text, width, image_size: as of `rahf.pretrained.clip.load_clip`.

    Returns:
      As `rahf.pretrained.clip.load_clip`.

    Raises:
      PretrainedError: another size, tensors missing, extra, misshapen or not finite.
    """
    tensors, where = files.open_file(weights.folder), str(weights.folder)
    published = _published(tensors, where, vision.heads)
    clip.check_sizes(published, vision, text, width, where)
    taker = strict.Taker(_split(tensors), where)
    taker.drop("attn_mask")  # the causal mask, in old files
    visual = taker.under("visual.")
    block = ViTConfig(width=text.width, heads=text.heads, mlp_width=text.mlp_width)
    layers = {
        f"layer_{number}": towers.convert_block(taker.under(NAMES.layer.format(number)), NAMES, block, True)
        for number in range(text.depth)
    }
    embeddings = {
        "embedding": taker.take("token_embedding.weight", (text.vocab_size, text.width)),
        "position": taker.take("positional_embedding", (text.positions, text.width)),
    }
    params = {
        "vit": towers.convert_tower(visual, NAMES, published.vision, vision, image_size),
        "text": {**embeddings, **layers, "norm": taker.norm("ln_final", text.width)},
        "image_projection": {"kernel": visual.take("proj", (vision.width, width))},
        "text_projection": {"kernel": taker.take("text_projection", (text.width, width))},
        "logit_scale": taker.take("logit_scale", ()),
    }
    taker.finish()
    strict.check_complete(params, clip.expected_shapes(vision, text, width, image_size), where)
    return params


def _split(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Query, key and value by themselves; positions of the image tower as [1,N,D], as other families have them."""
    named: dict[str, StoredTensor] = {}
    for name, stored in tensors.items():
        before, fused, kind = name.partition(_FUSED)
        if fused and stored.shape and stored.shape[0] % 3 == 0:
            rows = stored.shape[0] // 3
            for number, part in enumerate(("query", "key", "value")):
                load = functools.partial(_rows, stored, number * rows, rows)
                shape = (rows, *stored.shape[1:])
                named[f"{before}{_FUSED}{part}.{kind}"] = stored._replace(shape=shape, load=load)
        elif name == f"visual.{NAMES.position}":
            shape = (1, *stored.shape)
            named[name] = stored._replace(shape=shape, load=functools.partial(_first_axis, stored))
        else:
            named[name] = stored
    return named


def _rows(stored: StoredTensor, start: int, count: int) -> np.ndarray:
    return stored.load()[start : start + count]


def _first_axis(stored: StoredTensor) -> np.ndarray:
    return stored.load()[None]
