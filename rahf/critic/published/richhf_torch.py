"""The public PyTorch checkpoint of multi-head RichHF (ViT-L/16 at 384, T5-base) → a `rahf` model directory.

Sizes come from the shapes, so smaller and larger networks of the same layout are read too.
"""

from __future__ import annotations

import hashlib
import math
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from rahf.config import Config, CriticConfig, HeatmapHeadConfig, ScoreHeadConfig, T5Config, ViTConfig
from rahf.core.batch import HEATMAPS, SCORES
from rahf.core.errors import PretrainedError
from rahf.core.version import __version__
from rahf.critic.networks import build
from rahf.nn import functional
from rahf.pretrained import files, strict, t5, towers, vit
from rahf.training.model_folder import check_free, write_model

_HEAD_WIDTH = 64  # of the attention of every published ViT up to L


def convert_richhf(
    state: Mapping[str, np.ndarray] | Mapping[str, files.StoredTensor],
    *,
    vit_heads: int | None = None,
    where: str = "state dict",
) -> tuple[CriticConfig, functional.Params]:
    """Converts a state dict of the public PyTorch network.

    Args:
      state: arrays by PyTorch name (or opened, unread tensors).
      vit_heads: attention heads of the ViT, the one size that no shape depends on; None: width / 64.
      where: the file, for messages.

    Returns:
      The network's configuration and all its parameters, float32.

    Raises:
      PretrainedError: another kind of network; or tensors missing, extra, misshapen or not finite, by name.
    """
    arrays = files.from_arrays({n: v for n, v in state.items() if not isinstance(v, files.StoredTensor)}, where)
    taker = strict.Taker({**state, **arrays}, where)
    config = infer(taker, vit_heads)
    width = config.t5.width
    published = towers.PublishedTower(config.vit, config.image_size)
    params = {
        "vit": towers.convert_tower(taker.under("vit."), vit.NAMES, published, config.vit, config.image_size),
        "projection": taker.linear("visual_token_projection", config.vit.width, width),
        **t5.convert_t5(taker.under("t5."), config.t5),
    }
    for name in HEATMAPS:
        params[f"heatmap_{name}"] = _heatmap_head(taker.under(f"heatmap_predictor.{name}."), width, config.heatmap_head)
    grid = config.image_size // config.vit.patch_size
    for name in SCORES:
        params[f"score_{name}"] = _score_head(taker.under(f"score_predictor.{name}."), width, grid, config.score_head)
    taker.drop("vit.pooler.*")
    taker.finish()
    strict.check_complete(params, functional.abstract(build.build(config))[1], where)
    return config, params


def infer(taker: strict.Taker, vit_heads: int | None = None) -> CriticConfig:
    """The configuration that the shapes of a checkpoint imply.

    Raises:
      PretrainedError: tensors that the sizes are read from are missing: another kind of network.
    """
    vit_config, image_size = _infer_vit(taker.under("vit."), vit_heads)
    return CriticConfig(
        image_size=image_size,
        vit=vit_config,
        t5=_infer_t5(taker.under("t5.")),
        heatmap_head=_infer_heatmap_head(taker.under(f"heatmap_predictor.{HEATMAPS[0]}.")),
        score_head=_infer_score_head(taker.under(f"score_predictor.{SCORES[0]}.")),
        decoder_sees="text",
    )


def _infer_vit(taker: strict.Taker, heads: int | None) -> tuple[ViTConfig, int]:
    width, _, patch, _ = taker.shape(f"{vit.NAMES.patch}.weight", 4)
    tokens = taker.shape(vit.NAMES.position, 3)[1]
    grid = math.isqrt(max(tokens - 1, 0))
    if heads is None and width % _HEAD_WIDTH:
        raise PretrainedError(
            f"vit: {width} channels are not heads of {_HEAD_WIDTH}; say how many heads it has with --vit-heads"
        )
    if heads is not None and (heads < 1 or width % heads):
        raise PretrainedError(f"--vit-heads {heads}: expected a divisor of the ViT's {width} channels")
    config = ViTConfig(
        patch_size=patch,
        width=width,
        depth=taker.count("encoder.layer.{}.layernorm_before.weight"),
        heads=heads or width // _HEAD_WIDTH,
        mlp_width=taker.shape("encoder.layer.0.intermediate.dense.weight", 2)[0],
        class_token=True,
        layer_norm_eps=1e-12,
    )
    return config, grid * patch


def _infer_t5(taker: strict.Taker) -> T5Config:
    vocabulary, width = taker.shape("shared.weight", 2)
    attention = "encoder.block.0.layer.0.SelfAttention."
    buckets, heads = taker.shape(attention + "relative_attention_bias.weight", 2)
    feed_forward = "encoder.block.0.layer.1.DenseReluDense."
    gated = feed_forward + "wi_0.weight" in taker
    return T5Config(
        vocab_size=vocabulary,
        width=width,
        head_width=taker.shape(attention + "q.weight", 2)[0] // heads,
        heads=heads,
        mlp_width=taker.shape(feed_forward + ("wi_0.weight" if gated else "wi.weight"), 2)[0],
        encoder_layers=taker.count("encoder.block.{}.layer.0.layer_norm.weight"),
        decoder_layers=taker.count("decoder.block.{}.layer.0.layer_norm.weight"),
        ff="gated-gelu" if gated else "relu",
        tie_embeddings=not gated,  # v1.0 ties and scales, v1.1 does neither
        relative_buckets=buckets,
    )


def _infer_heatmap_head(taker: strict.Taker) -> HeatmapHeadConfig:
    first = [f"conv_layers.{3 * i}.weight" for i in range(taker.count("conv_layers.{}.weight", 3))]
    stages = range(taker.count("deconv_layers.{}.0.weight"))
    return HeatmapHeadConfig(
        conv_widths=tuple(taker.shape(name, 4)[0] for name in first),
        up_widths=tuple(taker.shape(f"deconv_layers.{i}.0.weight", 4)[1] for i in stages),
        norm="rms",
        residual=True,
        relu_before_norm=True,
    )


def _infer_score_head(taker: strict.Taker) -> ScoreHeadConfig:
    convs = [f"conv_layers.{3 * i}.weight" for i in range(taker.count("conv_layers.{}.weight", 3))]
    dense = [f"linear_layers.{2 * i}.weight" for i in range(taker.count("linear_layers.{}.weight", 2))]
    return ScoreHeadConfig(
        conv_widths=tuple(taker.shape(name, 4)[0] for name in convs),
        kernel_size=taker.shape("conv_layers.0.weight", 4)[2],
        padding="SAME",
        dense_widths=tuple(taker.shape(name, 2)[0] for name in dense[:-1]),
        norm="rms",
    )


def _up_conv(taker: strict.Taker, name: str, inputs: int, outputs: int) -> functional.Params:
    # Transposed: [in, out, height, width]. Tap k of ours is PyTorch's tap k, no flip: see layers.UpConv3x3.
    kernel = taker.take(f"{name}.weight", (inputs, outputs, 3, 3))
    return {
        "kernel": np.ascontiguousarray(kernel.transpose(2, 3, 0, 1)),
        "bias": taker.take(f"{name}.bias", (outputs,)),
    }


def _channel_norm(taker: strict.Taker, name: str, width: int) -> functional.Params:
    return {"scale": taker.take(f"{name}.scale", (width, 1, 1)).reshape(width)}


def _heatmap_head(taker: strict.Taker, width: int, config: HeatmapHeadConfig) -> functional.Params:
    params: functional.Params = {}
    for number, out in enumerate(config.conv_widths):  # convolution, ReLU, norm
        params[f"conv_{number}"] = taker.conv(f"conv_layers.{3 * number}", width, out)
        params[f"norm_{number}"] = _channel_norm(taker, f"conv_layers.{3 * number + 2}", out)
        width = out
    for number, out in enumerate(config.up_widths):
        up, two = f"deconv_layers.{number}", f"conv_layers2.{number}"
        params[f"up_{number}"] = {
            "up": _up_conv(taker, f"{up}.0", width, out),
            "norm_up": _channel_norm(taker, f"{up}.1", out),
            "conv1": taker.conv(f"{two}.0", out, out),
            "norm1": _channel_norm(taker, f"{two}.1", out),
            "conv2": taker.conv(f"{two}.3", out, out),
            "norm2": _channel_norm(taker, f"{two}.4", out),
        }
        width = out
    return {
        **params,
        "last": taker.conv("last_conv1", width, width),
        "out": taker.conv("last_conv2", width, 1),
    }


def _score_head(taker: strict.Taker, width: int, grid: int, config: ScoreHeadConfig) -> functional.Params:
    params: functional.Params = {}
    for number, out in enumerate(config.conv_widths):  # convolution, norm, ReLU
        params[f"conv_{number}"] = taker.conv(f"conv_layers.{3 * number}", width, out, config.kernel_size)
        params[f"norm_{number}"] = _channel_norm(taker, f"conv_layers.{3 * number + 1}", out)
        width = out
    channels, width = width, width * grid * grid
    for number, out in enumerate((*config.dense_widths, 1)):
        dense = taker.linear(f"linear_layers.{2 * number}", width, out)
        if number == 0:
            # PyTorch flattens [channel, y, x], ours [y, x, channel].
            rows = dense["kernel"].reshape(channels, grid, grid, out).transpose(1, 2, 0, 3)
            dense["kernel"] = np.ascontiguousarray(rows).reshape(-1, out)
        params["out" if number == len(config.dense_widths) else f"dense_{number}"] = dense
        width = out
    return params


def import_checkpoint(
    file: str | os.PathLike,
    out: str | os.PathLike,
    *,
    license: str = "unknown",
    tokenizer: str | os.PathLike = "google-t5/t5-base",
    vit_heads: int | None = None,
) -> pathlib.Path:
    """Turns the published PyTorch checkpoint into a model directory that every command accepts.

    The file is read by PyTorch's weights-only reader; its pickle is never executed. The directory appears
    complete or not at all.

    Args:
      file: the ``.pt`` file.
      out: directory to write; must not exist, or be empty.
      license: of the weights, as the user states it; recorded in `model.json`.
      tokenizer: SentencePiece file, T5 folder or hub id whose vocabulary the network was trained with.
      vit_heads: see `convert_richhf`.

    Returns:
      `out`.

    Raises:
      PretrainedError: `out` is not empty; or the file is no such checkpoint: names the wrong tensors.
    """
    file = pathlib.Path(file)
    if not file.is_file():
        raise PretrainedError(f"{file}: no such file; expected the published checkpoint")
    out = check_free(out)
    model, params = convert_richhf(files.open_torch(file), vit_heads=vit_heads, where=str(file))
    vocabulary = t5.published_t5_tokenizer(tokenizer, model.t5.vocab_size)
    record = {
        "license": license,
        "source": file.name,
        "sha256": _sha256(file),
        "format": "richhf-torch",
        "parameters": functional.count(params),
        "rahf": __version__,
    }
    write_model(out, Config(workdir=str(out), model=model), params, vocabulary, record)
    return out


def _sha256(file: pathlib.Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
