"""Tensors of `diffusers` ↔ parameters of the networks here: same names, other layouts.

A kernel [inputs, outputs] is a matrix [outputs, inputs] there, or a 1x1 convolution [outputs, inputs, 1, 1]; a kernel
[y, x, inputs, outputs] a convolution [outputs, inputs, y, x].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from rahf.config import ClipTextConfig, StableDiffusionConfig
from rahf.core.tree import Params, flatten, unflatten
from rahf.pretrained import clip, strict

#: Dense layers that files hold as 1x1 convolutions.
_POINTWISE = ("conv_shortcut", "quant_conv", "post_quant_conv")
_LEAVES = {"kernel": "weight", "scale": "weight", "bias": "bias"}
#: The autoencoder's attention in files of older versions.
_FORMER_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

#: Path of a kernel → whether files hold it as a 1x1 convolution.
Pointwise = Callable[[str], bool]


def pointwise(use_linear_projection: bool) -> Pointwise:
    """Which dense layers files hold as 1x1 convolutions; `use_linear_projection` is the U-Net's."""
    names = _POINTWISE if use_linear_projection else (*_POINTWISE, "proj_in", "proj_out")
    # A gated layer has a part `proj`, but no layer within a transformer block is called proj_in.
    return lambda path: path.split("/")[-2] in names


def controlnet_pointwise(use_linear_projection: bool) -> Pointwise:
    """The same for a ControlNet, whose outputs go through 1x1 convolutions."""
    of_unet = pointwise(use_linear_projection)
    outputs = ("controlnet_down_blocks", "controlnet_mid_block")
    return lambda path: path.split("/")[0] in outputs or of_unet(path)


def tensor_name(path: str) -> str:
    """The name in files of a parameter's path."""
    *parents, leaf = path.split("/")
    return ".".join([*parents, _LEAVES[leaf]])


def stored_shape(path: str, shape: tuple[int, ...], is_pointwise: Pointwise) -> tuple[int, ...]:
    """The shape in files of a parameter."""
    if not path.endswith("kernel"):
        return shape
    if len(shape) == 4:
        y, x, inputs, outputs = shape
        return (outputs, inputs, y, x)
    return (*shape[::-1], 1, 1) if is_pointwise(path) else shape[::-1]


def to_stored(path: str, value: np.ndarray, is_pointwise: Pointwise) -> np.ndarray:
    """A parameter in the layout of files."""
    value = np.asarray(value)
    if path.endswith("kernel"):
        value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        value = value[..., None, None] if value.ndim == 2 and is_pointwise(path) else value
    return np.ascontiguousarray(value)


def from_stored(path: str, value: np.ndarray) -> np.ndarray:
    """A tensor of a file in the layout of parameters; the inverse of `to_stored`."""
    if path.endswith("kernel"):
        value = value.squeeze((2, 3)) if value.ndim == 4 and value.shape[2:] == (1, 1) else value
        value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
    return np.ascontiguousarray(value)


def take(taker: strict.Taker, shapes: Params, is_pointwise: Pointwise) -> Params:
    """Takes all parameters of a network out of a checkpoint; `taker.finish` must follow.

    Args:
      taker: of the network's tensors.
      shapes: of its parameters, nested, of anything that has a `shape`.
      is_pointwise: of `pointwise`.
    """
    params = {}
    for path, leaf in flatten(shapes).items():
        name, shape = tensor_name(path), stored_shape(path, tuple(leaf.shape), is_pointwise)
        former = former_name(name)
        if name not in taker and former in taker:
            name = former
            # Some of these files hold matrices, others 1x1 convolutions.
            shape = (*shape, 1, 1) if taker.rank(name) == 4 else shape
        params[path] = from_stored(path, taker.take(name, shape))
    return unflatten(params)


def former_name(name: str) -> str:
    """The name of a tensor in files of older versions of `diffusers`."""
    for new, old in _FORMER_ATTENTION.items():
        if f"attentions.0.{new}." in name:
            return name.replace(f"attentions.0.{new}.", f"attentions.0.{old}.")
    return name


def take_text(taker: strict.Taker, config: ClipTextConfig, projection: int = 0) -> tuple[Params, Params | None]:
    """Takes a text tower and its projection to `projection` outputs (0: it has none); `taker.finish` must follow."""
    taker.drop("*embeddings.position_ids")  # a list of numbers in old files
    prefix = "text_model." if "text_model.final_layer_norm.weight" in taker else ""
    params = clip.convert_text(taker.under(prefix), config)
    if not projection:
        taker.drop("text_projection.weight")  # of a tower that is read before it
        return params, None
    return params, taker.linear("text_projection", config.width, projection, bias=False)


def text_to_stored(params: Mapping, config: ClipTextConfig, projection: Params | None = None) -> dict[str, np.ndarray]:
    """A text tower in the layout of files; the inverse of `take_text`."""
    names, tensors = clip.NAMES, {}

    def put(name: str, layer: Params) -> None:
        for leaf, value in layer.items():
            value = np.asarray(value)
            stored = value.T if leaf == "kernel" else value
            tensors[f"text_model.{name}.{_LEAVES[leaf]}"] = np.ascontiguousarray(stored)

    tensors["text_model.embeddings.token_embedding.weight"] = np.asarray(params["embedding"])
    tensors["text_model.embeddings.position_embedding.weight"] = np.asarray(params["position"])
    for number in range(config.depth):
        for part in ("norm1", "norm2", "query", "key", "value", "out", "wi", "wo"):
            put(names.layer.format(number) + getattr(names, part), params[f"layer_{number}"][part])
    put("final_layer_norm", params["norm"])
    if projection is not None:
        tensors["text_projection.weight"] = np.ascontiguousarray(np.asarray(projection["kernel"]).T)
    return tensors


def stored_tensors(params: Params, config: StableDiffusionConfig) -> dict[str, dict[str, np.ndarray]]:
    """All parts of a pipeline in the layout of files, by the names of their folders."""
    network = pointwise(config.unet.use_linear_projection)
    folders = {
        part: {tensor_name(path): to_stored(path, value, network) for path, value in flatten(params[part]).items()}
        for part in ("unet", "vae")
    }
    folders["text_encoder"] = text_to_stored(params["text_encoder"], config.text_encoder)
    if config.text_encoder_2 is not None:
        folders["text_encoder_2"] = text_to_stored(
            params["text_encoder_2"], config.text_encoder_2, params["text_projection"]
        )
    return folders
