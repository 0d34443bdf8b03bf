"""ResNet with bottlenecks: the Hugging Face layout of `microsoft/resnet-50`, and torchvision's state dicts."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rahf.config import ResNetConfig
from rahf.core.errors import PretrainedError
from rahf.nn import functional
from rahf.nn.resnet import EXPANSION, ResNet
from rahf.pretrained import affine, files, source, strict
from rahf.pretrained.source import Colour, WeightsSource

#: How ImageNet's images are normalised for both layouts.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_EPS = 1e-5  # of PyTorch's batch normalization, which neither layout changes


class PublishedResNet(NamedTuple):
    """A published ResNet: sizes, and how images were normalised from [0,1]."""

    resnet: ResNetConfig
    image_mean: Colour = MEAN
    image_std: Colour = STD


class _LayerNames(NamedTuple):
    """What a layout calls convolution and normalization: of the stem, of layer 0..2 of a block, of its shortcut."""

    stem: tuple[str, str]
    block: str  # stage from 0, number
    layer: Callable[[int], tuple[str, str]]
    shortcut: tuple[str, str]
    first_stage: int
    unused: tuple[str, ...]


_HUGGING_FACE = _LayerNames(
    stem=("embedder.embedder.convolution", "embedder.embedder.normalization"),
    block="encoder.stages.{}.layers.{}.",
    layer=lambda i: (f"layer.{i}.convolution", f"layer.{i}.normalization"),
    shortcut=("shortcut.convolution", "shortcut.normalization"),
    first_stage=0,
    unused=("classifier.*",),
)
_TORCHVISION = _LayerNames(
    stem=("conv1", "bn1"),
    block="layer{}.{}.",
    layer=lambda i: (f"conv{i + 1}", f"bn{i + 1}"),
    shortcut=("downsample.0", "downsample.1"),
    first_stage=1,
    unused=("fc.*",),
)


def locate_resnet(name: str | os.PathLike | WeightsSource, revision: str | None = None) -> WeightsSource:
    """Finds a checkpoint as `rahf.pretrained.source.locate` does, or torchvision's file (``resnet50-*.pth``)."""
    if not isinstance(name, WeightsSource) and pathlib.Path(name).is_file():
        return WeightsSource(pathlib.Path(name), os.fspath(name))
    return source.locate(name, revision)


def published_resnet(name: str | os.PathLike | WeightsSource, revision: str | None = None) -> PublishedResNet:
    """Sizes and normalisation of a published ResNet: from its config, or of a state dict from its shapes.

    Args:
      name: folder, hub id (``microsoft/resnet-50``), torchvision's file, or located source.
      revision: branch, tag or commit of a hub id.

    Raises:
      PretrainedError: another kind of network.
    """
    weights = locate_resnet(name, revision)
    if weights.folder.is_file():
        return PublishedResNet(_infer(strict.Taker(files.open_file(weights.folder), str(weights.folder))))
    tree, where = source.read_config(weights, ("resnet",)), str(weights.folder / "config.json")
    for field, expected in (
        ("layer_type", "bottleneck"),
        ("hidden_act", "relu"),
        ("num_channels", 3),
        ("downsample_in_first_stage", False),
        ("downsample_in_bottleneck", False),
    ):
        if tree.get(field, expected) != expected:
            raise PretrainedError(f"{where}: {field} is {tree[field]!r}, expected {expected!r}, as in ResNet-50")
    defaults = ResNetConfig()
    config = ResNetConfig(
        tree.get("embedding_size", defaults.stem_width),
        tuple(tree.get("hidden_sizes", defaults.widths)),
        tuple(tree.get("depths", defaults.depths)),
    )
    return PublishedResNet(config, **source.read_normalisation(weights))


def load_resnet(
    name: str | os.PathLike | WeightsSource, config: ResNetConfig, *, revision: str | None = None
) -> functional.Params:
    """Loads a published ResNet without its classifier; batch normalizations become scale and bias.

    Args:
      name: as of `published_resnet`.
      config: sizes must be the checkpoint's.
      revision: branch, tag or commit of a hub id.

    Returns:
      Parameters of `rahf.nn.resnet.ResNet(config)`, float32.

    Raises:
      PretrainedError: another family or size, tensors missing, extra, misshapen or not finite.
    """
    weights = locate_resnet(name, revision)
    where = str(weights.folder)
    if weights.folder.is_file():
        names, prefix, tensors = _TORCHVISION, "", files.open_file(weights.folder)
    else:
        names, tensors = _HUGGING_FACE, files.open_folder(weights)
        prefix = "resnet." if any(n.startswith("resnet.embedder.") for n in tensors) else ""
    fields = ("stem_width", "widths", "depths")
    strict.compare(published_resnet(weights).resnet, config, fields, "model.resnet", where)
    taker = strict.Taker(tensors, where)
    taker.drop(*names.unused, "*.num_batches_tracked")  # the classifier, and a counter of training
    params = _convert(taker.under(prefix), names, config)
    taker.finish()
    _, expected = functional.abstract(lambda: ResNet(config, dtype=jnp.dtype("float32")))
    strict.check_complete(params, expected, where)
    return params


def _infer(taker: strict.Taker) -> ResNetConfig:
    """Sizes from the shapes of torchvision's state dict."""
    stem = taker.shape("conv1.weight", 4)[0]
    stages = 0
    while f"layer{stages + 1}.0.conv3.weight" in taker:
        stages += 1
    widths = tuple(taker.shape(f"layer{s}.0.conv3.weight", 4)[0] for s in range(1, stages + 1))
    depths = tuple(taker.count(f"layer{s}.{{}}.conv1.weight") for s in range(1, stages + 1))
    if not stages:
        taker.shape("layer1.0.conv3.weight", 4)  # raises: another kind of network
    return ResNetConfig(stem, widths, depths)


def _convert(taker: strict.Taker, names: _LayerNames, config: ResNetConfig) -> functional.Params:
    params = {"stem": _conv(taker, names.stem, 3, config.stem_width, 7)}
    inputs = config.stem_width
    for stage, (outputs, depth) in enumerate(zip(config.widths, config.depths)):
        for number in range(depth):
            of_block = taker.under(names.block.format(stage + names.first_stage, number))
            inner = outputs // EXPANSION
            block = {
                "conv1": _conv(of_block, names.layer(0), inputs, inner, 1),
                "conv2": _conv(of_block, names.layer(1), inner, inner, 3),
                "conv3": _conv(of_block, names.layer(2), inner, outputs, 1),
            }
            if not number and (stage or inputs != outputs):
                block["shortcut"] = _conv(of_block, names.shortcut, inputs, outputs, 1)
            params[f"stage_{stage}_{number}"] = block
            inputs = outputs
    return params


def _conv(taker: strict.Taker, names: tuple[str, str], inputs: int, outputs: int, size: int) -> functional.Params:
    """Convolution OIHW → HWIO; its batch normalization with the statistics of its training → scale and bias."""
    kernel = taker.take(f"{names[0]}.weight", (outputs, inputs, size, size))
    kernel = np.ascontiguousarray(kernel.transpose(2, 3, 1, 0))
    return {"kernel": kernel, **affine.batch_norm(taker, names[1], outputs, _EPS)}
