"""VGG as torchvision publishes it (``vgg16-*.pth``), or the same state dict as safetensors."""

from __future__ import annotations

import os
import pathlib

import jax.numpy as jnp

from rahf.core.errors import PretrainedError
from rahf.nn import functional
from rahf.nn.vgg import VGG, VGGConfig
from rahf.pretrained import files, strict


def published_vgg(file: str | os.PathLike) -> VGGConfig:
    """Sizes of a published VGG, from the shapes of its tensors.

    Raises:
      PretrainedError: no such file, or another kind of network; batch normalization is not read.
    """
    return _infer(_open(file), str(file))


def load_vgg(file: str | os.PathLike, config: VGGConfig) -> functional.Params:
    """Loads a published VGG without its classifier.

    Args:
      file: torchvision's state dict, .pth or .safetensors; PyTorch's is read by the weights-only reader.
      config: sizes of the checkpoint, or of its first stages: the rest is left out.

    Returns:
      Parameters of `rahf.nn.vgg.VGG(config)`, float32.

    Raises:
      PretrainedError: other sizes, tensors missing, extra, misshapen or not finite.
    """
    where, taker = str(file), _open(file)
    published = _infer(taker, where)
    strict.compare(published.first(len(config.widths)), config, VGGConfig._fields, "VGG", where)
    params, inputs = {}, 3
    for width, numbers in zip(config.widths, config.numbers()):
        for number in numbers:
            params[str(number)] = taker.conv(f"features.{number}", inputs, width)
            inputs = width
    unused = published.numbers()[len(config.widths) :]
    taker.drop("classifier.*", *(f"features.{number}.*" for numbers in unused for number in numbers))
    taker.finish()
    params = {"features": params}
    _, expected = functional.abstract(lambda: VGG(config, dtype=jnp.dtype("float32")))
    strict.check_complete(params, expected, where)
    return params


def _open(file: str | os.PathLike) -> strict.Taker:
    path = pathlib.Path(file)
    if not path.is_file():
        raise PretrainedError(f"{path}: no such file; give torchvision's VGG, such as vgg16-397923af.pth")
    return strict.Taker(files.open_file(path), str(path))


def _infer(taker: strict.Taker, where: str) -> VGGConfig:
    """Sizes from positions and shapes: a maximum between two convolutions leaves one number more out."""
    numbers = sorted(
        int(name.split(".")[1]) for name in taker.names() if name.startswith("features.") and name.endswith(".weight")
    )
    if not numbers or any(taker.rank(f"features.{number}.weight") != 4 for number in numbers):
        found = "batch normalization" if numbers else "no `features`"
        raise PretrainedError(f"{where}: expected torchvision's VGG without batch normalization, found {found}")
    stages: list[list[int]] = [[numbers[0]]]
    for before, number in zip(numbers, numbers[1:]):
        if number - before == 2:
            stages[-1].append(number)
        else:
            stages.append([number])
    widths = tuple(taker.shape(f"features.{stage[-1]}.weight", 4)[0] for stage in stages)
    config = VGGConfig(widths, tuple(map(len, stages)))
    if config.numbers() != tuple(map(tuple, stages)):
        raise PretrainedError(f"{where}: convolutions at {numbers} are not those of torchvision's VGG")
    return config
