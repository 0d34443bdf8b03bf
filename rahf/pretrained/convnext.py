"""ConvNeXt in the Hugging Face layout (``facebook/convnext-tiny-224``); ConvNeXt V2 is refused."""

from __future__ import annotations

import os
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rahf.config import ConvNextConfig
from rahf.core.errors import PretrainedError
from rahf.nn import functional
from rahf.nn.convnext import EXPANSION, KERNEL, ConvNext
from rahf.pretrained import files, source, strict
from rahf.pretrained.resnet import MEAN, STD
from rahf.pretrained.source import Colour, WeightsSource


class PublishedConvNext(NamedTuple):
    """A published ConvNeXt: sizes, and how images were normalised from [0,1]."""

    convnext: ConvNextConfig
    image_mean: Colour = MEAN
    image_std: Colour = STD


def published_convnext(name: str | os.PathLike | WeightsSource, revision: str | None = None) -> PublishedConvNext:
    """Sizes and normalisation of a published ConvNeXt, from its config.

    Raises:
      PretrainedError: another kind of network.
    """
    weights = source.locate(name, revision)
    tree, where = source.read_config(weights, ("convnext",)), str(weights.folder / "config.json")
    for field, expected in (("hidden_act", "gelu"), ("num_channels", 3)):
        if tree.get(field, expected) != expected:
            raise PretrainedError(f"{where}: {field} is {tree[field]!r}, expected {expected!r}, as in ConvNeXt")
    defaults = ConvNextConfig()
    config = ConvNextConfig(
        tree.get("patch_size", defaults.patch_size),
        tuple(tree.get("hidden_sizes") or defaults.widths),
        tuple(tree.get("depths") or defaults.depths),
        tree.get("layer_scale_init_value", 1e-6) > 0,
    )
    return PublishedConvNext(config, **source.read_normalisation(weights))


def load_convnext(
    name: str | os.PathLike | WeightsSource, config: ConvNextConfig, *, revision: str | None = None
) -> functional.Params:
    """Loads a published ConvNeXt without its classifier and the norm in front of it.

    Args:
      name: folder, hub id or located source.
      config: sizes must be the checkpoint's.
      revision: branch, tag or commit of a hub id.

    Returns:
      Parameters of `rahf.nn.convnext.ConvNext(config)`, float32.

    Raises:
      PretrainedError: another family or size, tensors missing, extra, misshapen or not finite.
    """
    weights = source.locate(name, revision)
    where = str(weights.folder)
    fields = ("patch_size", "widths", "depths", "layer_scale")
    strict.compare(published_convnext(weights).convnext, config, fields, "model.convnext", where)
    tensors = files.open_folder(weights)
    prefix = "convnext." if any(name.startswith("convnext.embeddings.") for name in tensors) else ""
    taker = strict.Taker(tensors, where)
    taker.drop("classifier.*", f"{prefix}layernorm.*")
    params = _convert(taker.under(prefix), config)
    taker.finish()
    _, expected = functional.abstract(lambda: ConvNext(config, dtype=jnp.dtype("float32")))
    strict.check_complete(params, expected, where)
    return params


def _convert(taker: strict.Taker, config: ConvNextConfig) -> functional.Params:
    params: functional.Params = {}
    inputs = 3
    for stage, (width, depth) in enumerate(zip(config.widths, config.depths)):
        if stage:
            layer = taker.under(f"encoder.stages.{stage}.downsampling_layer.")
            params[f"norm_{stage}"], names, size = layer.norm("0", inputs), "1", 2
        else:
            layer, names, size = taker.under("embeddings."), "patch_embeddings", config.patch_size
            params["norm_0"] = layer.norm("layernorm", width)
        params[f"patches_{stage}"] = layer.conv(names, inputs, width, size)
        for number in range(depth):
            block = taker.under(f"encoder.stages.{stage}.layers.{number}.")
            params[f"stage_{stage}_{number}"] = _block(block, width, config.layer_scale)
        inputs = width
    return params


def _block(taker: strict.Taker, width: int, layer_scale: bool) -> functional.Params:
    kernel = taker.take("dwconv.weight", (width, 1, KERNEL, KERNEL))[:, 0].transpose(1, 2, 0)
    block = {
        "kernel": np.ascontiguousarray(kernel),
        "bias": taker.take("dwconv.bias", (width,)),
        "norm": taker.norm("layernorm", width),
        "wi": taker.linear("pwconv1", width, EXPANSION * width),
        "wo": taker.linear("pwconv2", EXPANSION * width, width),
    }
    return block | ({"scale": taker.take("layer_scale_parameter", (width,))} if layer_scale else {})
