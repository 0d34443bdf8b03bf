"""Vision towers of families that differ in names only: PyTorch tensors → parameters of `rahf.nn.vit.ViT`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from rahf.config import ViTConfig
from rahf.core.errors import PretrainedError
from rahf.nn import functional, vit
from rahf.pretrained import files, source, strict
from rahf.pretrained.positions import Interpolation, resize_antialiased, resize_positions
from rahf.pretrained.source import Colour, WeightsSource

#: Names of activations in published configs → `ViTConfig.activation`.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_new": "gelu-tanh",
    "quick_gelu": "quick-gelu",
    "silu": "silu",
}

#: Fields of `ViTConfig` in which a network and the checkpoint for it must agree.
COMPARED = (
    "patch_size",
    "width",
    "depth",
    "heads",
    "mlp_width",
    "layer_norm_eps",
    "activation",
    "layer_scale",
    "pre_norm",
    "registers",
    "rope_theta",
    "gated_mlp",
    "stem",
)


class TensorNames(NamedTuple):
    """What a family calls the tensors of a tower; names from `query` on follow the prefix `layer`."""

    patch: str
    position: str | None  # None: rotary positions, which have no parameters
    class_token: str | None
    norm: str
    layer: str
    query: str
    key: str
    value: str
    out: str
    norm1: str
    norm2: str
    wi: str
    wo: str
    scale1: str | None = None
    scale2: str | None = None
    pre_norm: str | None = None
    registers: str | None = None
    gate: str | None = None


class PublishedTower(NamedTuple):
    """A published tower: config, side of its images in pixels, and how they were normalised from [0,1]."""

    vit: ViTConfig
    image_size: int
    image_mean: Colour = (0.5, 0.5, 0.5)
    image_std: Colour = (0.5, 0.5, 0.5)
    # Which of query, key and value have a bias; the others get zeros in `rahf`'s network, which is the same function.
    qkv_bias: bool | tuple[bool, bool, bool] = True
    patch_bias: bool = True  # likewise
    dense_bias: tuple[bool, bool] = (True, True)  # likewise: of attention's output, and of the feed-forward layers
    linear_patches: bool = False  # the patch embedding is a matrix [width, y · x · colour], not a convolution
    antialias: bool = False  # positions are interpolated bilinearly with antialiasing (SigLIP 2 of varying sizes)


class TowerFamily(NamedTuple):
    """All that is particular to one kind of published tower."""

    model_types: tuple[str, ...]
    names: TensorNames
    unused: tuple[str, ...]  # patterns of tensors that the tower has no use for
    read: Callable[[dict[str, Any], str], PublishedTower]  # from config.json and its path for messages
    prefix: str  # of the tower's names in checkpoints that hold more than the tower
    layers_in: Callable[[Iterable[str]], str] = lambda names: ""  # what is put in front of the names of layers

    def prefix_in(self, names: Iterable[str]) -> str:
        """The prefix of the tower's tensors among these names, "" if the checkpoint is the bare tower."""
        return self.prefix if any(name.startswith(f"{self.prefix}embeddings.") for name in names) else ""


def published_tower(family: TowerFamily, name: str | WeightsSource, revision: str | None = None) -> PublishedTower:
    """Reads sizes and normalisation of a published tower, no weights.

    Raises:
      PretrainedError: another family, or sizes that `rahf.nn.vit.ViT` does not have.
    """
    weights = source.locate(name, revision)
    tree = source.read_config(weights, family.model_types)
    published = family.read(tree, str(weights.folder / "config.json"))
    return published._replace(**source.read_normalisation(weights))


def load_tower(
    family: TowerFamily,
    name: str | WeightsSource,
    config: ViTConfig,
    image_size: int,
    *,
    revision: str | None = None,
    interpolation: Interpolation = "bicubic",
) -> functional.Params:
    """Loads a tower, perhaps for images of another size than it was trained on.

    Args:
      family: the checkpoint must belong to it.
      name: folder, hub id (``google/vit-large-patch16-384``) or located source.
      config: of the network that the weights go into. Its sizes must be the checkpoint's, `layer_norm_eps` too (1e-12
        in all of Google's ViTs). With `class_token` False the class token and its position are left out.
      image_size: side in pixels; position embeddings are interpolated to its grid of patches.
      revision: branch, tag or commit of a hub id.
      interpolation: of position embeddings; "bicubic" is what `transformers` does.

    Returns:
      Nested dict of float32 arrays, the parameters of `rahf.nn.vit.ViT(config, image_size)`.

    Raises:
      PretrainedError: another family or size, tensors missing, extra, misshapen or not finite.
    """
    weights = source.locate(name, revision)
    published = published_tower(family, weights)
    where = str(weights.folder)
    strict.compare(published.vit, config, COMPARED, "model.vit", where)
    if config.class_token and not published.vit.class_token:
        raise PretrainedError(f"{where}: has no class token; set model.vit.class_token to False")
    tensors = files.open_folder(weights)
    taker = strict.Taker(tensors, where)
    taker.drop(*family.unused)
    tower = taker.under(family.prefix_in(tensors))
    names = family.names._replace(layer=family.layers_in(tensors) + family.names.layer)
    params = convert_tower(tower, names, published, config, image_size, interpolation)
    taker.finish()
    _, expected = functional.abstract(lambda: vit.ViT(config, image_size, dtype=jnp.dtype("float32")))
    strict.check_complete(params, expected, where)
    return params


def convert_tower(
    taker: strict.Taker,
    names: TensorNames,
    published: PublishedTower,
    config: ViTConfig,
    image_size: int,
    interpolation: Interpolation = "bicubic",
) -> functional.Params:
    """Takes a tower out of a checkpoint; `taker.finish` must follow.

    Args:
      taker: of the tower's tensors.
      names: of the family.
      published: the checkpoint as published; its image side is the one that its position embeddings are for.
      config: of the network; with `class_token` False the checkpoint's class token is left out.
      image_size: side of the network's images in pixels.
      interpolation: of position embeddings.
    """
    width, patch = config.width, config.patch_size
    if published.linear_patches:
        kernel = taker.take(f"{names.patch}.weight", (width, patch * patch * 3)).T
    else:
        kernel = taker.take(f"{names.patch}.weight", (width, 3, patch, patch))
        kernel = kernel.transpose(2, 3, 1, 0).reshape(patch * patch * 3, width)
    bias = taker.take(f"{names.patch}.bias", (width,)) if published.patch_bias else np.zeros(width, np.float32)
    # The network flattens a patch as [y, x, colour].
    embed = {"kernel": np.ascontiguousarray(kernel), "bias": bias}
    params: functional.Params = {"embed": embed, "norm": taker.norm(names.norm, width)}
    if config.pre_norm:
        params["pre_norm"] = taker.norm(names.pre_norm, width)
    params |= _tokens(taker, names, published, config, image_size, interpolation)
    for number in range(config.depth):
        layer = taker.under(names.layer.format(number))
        params[f"layer_{number}"] = convert_block(layer, names, config, published.qkv_bias, published.dense_bias)
    return params


def _tokens(
    taker: strict.Taker,
    names: TensorNames,
    published: PublishedTower,
    config: ViTConfig,
    image_size: int,
    interpolation: Interpolation,
) -> functional.Params:
    """Position embeddings for the network's grid, and its class token if it has one."""
    width, has_class_token = config.width, published.vit.class_token
    if names.position is None:
        return _class_token(taker, names, published, config) | _registers(taker, names, config)
    grid = published.image_size // config.patch_size
    count = grid * grid + has_class_token
    # Learned positions are a parameter [1, N, D] in some families, an embedding table [N, D] in others.
    shape = (count, width) if names.position.endswith(".weight") else (1, count, width)
    position = taker.take(names.position, shape).reshape(count, width)
    of_class, of_patches = position[:has_class_token], position[has_class_token:]
    new_grid = image_size // config.patch_size
    if published.antialias:
        of_patches = resize_antialiased(of_patches, grid, new_grid)
    else:
        of_patches = resize_positions(of_patches, grid, new_grid, interpolation)
    params = {"position": np.concatenate([of_class, of_patches]) if config.class_token else of_patches}
    return params | _class_token(taker, names, published, config)


def _class_token(
    taker: strict.Taker, names: TensorNames, published: PublishedTower, config: ViTConfig
) -> functional.Params:
    if not published.vit.class_token:
        return {}
    # CLIP's is a vector, the other families' an image of one token.
    shape = (config.width,) if published.vit.pre_norm else (1, 1, config.width)
    token = taker.take(names.class_token, shape).reshape(config.width)
    return {"class_token": token} if config.class_token else {}


def _registers(taker: strict.Taker, names: TensorNames, config: ViTConfig) -> functional.Params:
    if not config.registers:
        return {}
    shape = (config.registers, config.width)
    return {"registers": taker.take(names.registers, (1, *shape)).reshape(shape)}


def convert_block(
    taker: strict.Taker,
    names: TensorNames,
    config: ViTConfig,
    qkv_bias: bool | tuple[bool, bool, bool],
    dense_bias: tuple[bool, bool] = (True, True),
) -> functional.Params:
    """Takes one layer of a tower; biases as in `PublishedTower`."""
    d, inner = config.width, config.mlp_width

    def linear(name: str, inputs: int, outputs: int, bias: bool) -> functional.Params:
        dense = taker.linear(name, inputs, outputs, bias=bias)
        return dense if bias else {**dense, "bias": np.zeros(outputs, np.float32)}

    params: functional.Params = {"norm1": taker.norm(names.norm1, d), "norm2": taker.norm(names.norm2, d)}
    biases = qkv_bias if isinstance(qkv_bias, tuple) else (qkv_bias,) * 3
    for name, bias in zip(("query", "key", "value"), biases):
        params[name] = linear(getattr(names, name), d, d, bias)
    params["out"] = linear(names.out, d, d, dense_bias[0])
    params["wi"] = linear(names.wi, d, inner, dense_bias[1])
    params["wo"] = linear(names.wo, inner, d, dense_bias[1])
    if config.gated_mlp:
        params["gate"] = linear(names.gate, d, inner, dense_bias[1])
    if config.layer_scale:
        params["scale1"], params["scale2"] = taker.take(names.scale1, (d,)), taker.take(names.scale2, (d,))
    return params


def _side(value: Any, field: str, where: str) -> int:
    """The side of something square that a config gives as a number or a pair. Raises PretrainedError."""
    sides = {int(v) for v in value} if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise PretrainedError(f"{where}: {field} is {value!r}, expected a square")
    return side


def activation(value: str, where: str) -> str:
    """`ViTConfig.activation` for a published `hidden_act`. Raises PretrainedError for one that the tower lacks."""
    if value not in _ACTIVATIONS:
        raise PretrainedError(f"{where}: hidden_act is {value!r}, expected one of {', '.join(map(repr, _ACTIVATIONS))}")
    return _ACTIVATIONS[value]


def read_sizes(tree: dict[str, Any], where: str, defaults: dict[str, Any], **fields: Any) -> PublishedTower:
    """The tower that a published config describes, from the field names that all families share.

    Args:
      tree: the published config.
      where: its path, for messages.
      defaults: of the family, for fields that the config leaves out.
      fields: of `ViTConfig` that the family fixes.
    """
    tree = {**defaults, **tree}
    if tree.get("num_channels", 3) != 3:
        raise PretrainedError(f"{where}: num_channels is {tree['num_channels']}, expected 3 (red, green, blue)")
    width, heads = tree["hidden_size"], tree["num_attention_heads"]
    if tree.get("head_dim", width // heads) != width // heads:
        raise PretrainedError(
            f"{where}: head_dim is {tree['head_dim']}, expected hidden_size / heads = {width // heads}"
        )
    image_size, patch = (_side(tree[field], field, where) for field in ("image_size", "patch_size"))
    config = ViTConfig(
        patch_size=patch,
        width=width,
        depth=tree["num_hidden_layers"],
        heads=heads,
        mlp_width=tree["intermediate_size"],
        layer_norm_eps=tree["layer_norm_eps"],
        activation=activation(tree["hidden_act"], where),
        **fields,
    )
    # The published convolution ignores pixels behind the last whole patch.
    return PublishedTower(config, image_size - image_size % patch, qkv_bias=tree.get("qkv_bias", True))
