"""Vision towers of families that differ in names only: PyTorch tensors → parameters of `models.vit.ViT`."""

from __future__ import annotations

from typing import Any, Callable, Iterable, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np

from rahf.config import ViTConfig
from rahf.core.errors import PretrainedError
from rahf.nn import functional, vit
from rahf.pretrained import files, strict
from rahf.pretrained import source as source_lib
from rahf.pretrained.source import Source

Interpolation = Literal["bicubic", "bilinear"]
Colour = tuple[float, float, float]

#: Names of activations in published configs → `ViTConfig.activation`.
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu-tanh",
    "gelu_new": "gelu-tanh",
    "quick_gelu": "quick-gelu",
}


class Names(NamedTuple):
    """What a family calls the tensors of a tower; names from `query` on are those behind `layer`."""

    patch: str
    position: str
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


class Published(NamedTuple):
    """A published tower: config, side of its images in pixels, and how they were normalised from [0,1]."""

    vit: ViTConfig
    image_size: int
    image_mean: Colour = (0.5, 0.5, 0.5)
    image_std: Colour = (0.5, 0.5, 0.5)
    qkv_bias: bool = True  # without: ours get zeros, the same function
    patch_bias: bool = True  # likewise


class Family(NamedTuple):
    """All that is particular to one kind of published tower."""

    model_types: tuple[str, ...]
    names: Names
    unused: tuple[str, ...]  # patterns of tensors that the tower has no use for
    read: Callable[[dict[str, Any], str], Published]  # from config.json and its path for messages
    prefix: Callable[[Iterable[str]], str]  # names in the file → what stands before the tower's names


def published(family: Family, name: str | Source, revision: str | None = None) -> Published:
    """Reads sizes and normalisation of a published tower, no weights."""
    source = source_lib.locate(name, revision)
    tree = source_lib.read_config(source, family.model_types)
    found = family.read(tree, str(source.folder / "config.json"))
    beside = source.folder / "preprocessor_config.json"
    if beside.is_file():
        processor = source_lib.read_json(beside)
        said = {k: tuple(map(float, processor[k])) for k in ("image_mean", "image_std") if k in processor}
        found = found._replace(**said)
    return found


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
    "stem",
)


def load(
    family: Family,
    name: str | Source,
    config: ViTConfig,
    image_size: int,
    *,
    revision: str | None = None,
    interpolation: Interpolation = "bicubic",
) -> functional.Params:
    """Loads a tower for images of another size, too.

    Args:
      name: folder, hub id or located source.
      config: of the network that the weights go into; sizes must be those of the checkpoint.
      image_size: side in pixels; position embeddings are interpolated to its grid.
      revision: of a hub id.
      interpolation: as PyTorch's `interpolate`, half-pixel centres, no antialiasing.

    Returns:
      Nested dict of float32 arrays, the parameters of `ViT(config, image_size)`.

    Raises:
      PretrainedError: another family or size, tensors missing, extra, misshapen or not finite.
    """
    source = source_lib.locate(name, revision)
    found = published(family, source)
    where = str(source.folder)
    strict.compare(found.vit, config, COMPARED, "model.vit", where)
    if config.class_token and not found.vit.class_token:
        raise PretrainedError(f"{where}: has no class token; set model.vit.class_token to False")
    stored = files.open_folder(source)
    taker = strict.Taker(stored, where)
    taker.drop(*family.unused)
    params = convert(taker.under(family.prefix(stored)), family.names, found, config, image_size, interpolation)
    taker.finish()
    _, expected = functional.abstract(lambda: vit.ViT(config, image_size, dtype=jnp.dtype("float32")))
    strict.check_complete(params, expected, where)
    return params


def convert(
    taker: strict.Taker,
    names: Names,
    found: Published,
    config: ViTConfig,
    image_size: int,
    interpolation: Interpolation = "bicubic",
) -> functional.Params:
    """Takes a tower out of a checkpoint; `taker.finish` must follow.

    Args:
      found: the checkpoint as published; its image side is the one its position embeddings are for.
      config: ours; a class token of the checkpoint is left out if `config.class_token` is False.
      image_size: side of the images that ours shall be for.
    """
    width, patch = config.width, config.patch_size
    kernel = taker.take(f"{names.patch}.weight", (width, 3, patch, patch))
    params: functional.Params = {
        "embed": {
            # Ours flattens a patch as [y, x, colour].
            "kernel": np.ascontiguousarray(kernel.transpose(2, 3, 1, 0)).reshape(patch * patch * 3, width),
            "bias": taker.take(f"{names.patch}.bias", (width,)) if found.patch_bias else np.zeros(width, np.float32),
        },
        "norm": taker.norm(names.norm, width),
    }
    if config.pre_norm:
        params["pre_norm"] = taker.norm(names.pre_norm, width)
    grid, has_class_token = found.image_size // patch, found.vit.class_token
    count = grid * grid + has_class_token
    # Learned positions are a parameter [1, N, D] in some families, an embedding table [N, D] in others.
    shape = (count, width) if names.position.endswith(".weight") else (1, count, width)
    position = taker.take(names.position, shape).reshape(count, width)
    first, rest = position[:has_class_token], position[has_class_token:]
    rest = resize_positions(rest, grid, image_size // patch, interpolation)
    params["position"] = np.concatenate([first, rest]) if config.class_token else rest
    if has_class_token:
        # CLIP's is a vector, the other families' an image of one token.
        token = taker.take(names.class_token, (width,) if found.vit.pre_norm else (1, 1, width)).reshape(width)
        params.update({"class_token": token} if config.class_token else {})
    for number in range(config.depth):
        params[f"layer_{number}"] = block(taker.under(names.layer.format(number)), names, config, found.qkv_bias)
    return params


def block(taker: strict.Taker, names: Names, config: ViTConfig, biased: bool) -> functional.Params:
    """Takes one layer of a tower; `biased` says whether query, key and value have biases there."""
    d, inner = config.width, config.mlp_width
    made: functional.Params = {"norm1": taker.norm(names.norm1, d), "norm2": taker.norm(names.norm2, d)}
    for ours in ("query", "key", "value"):
        made[ours] = taker.linear(getattr(names, ours), d, d, bias=biased)
        if not biased:
            made[ours]["bias"] = np.zeros(d, np.float32)
    made["out"] = taker.linear(names.out, d, d)
    made["wi"] = taker.linear(names.wi, d, inner)
    made["wo"] = taker.linear(names.wo, inner, d)
    if config.layer_scale:
        made["scale1"], made["scale2"] = taker.take(names.scale1, (d,)), taker.take(names.scale2, (d,))
    return made


def resize_positions(position: np.ndarray, grid: int, to: int, interpolation: Interpolation) -> np.ndarray:
    """Position embeddings [grid², D] → [to², D], float32, separably over rows and columns."""
    if to == grid:
        return position
    weights = _resize_matrix(grid, to, interpolation)
    square = position.reshape(grid, grid, -1).astype(np.float64)
    square = np.einsum("yr,xc,rcd->yxd", weights, weights, square, optimize=True)
    return square.reshape(to * to, -1).astype(np.float32)


def _resize_matrix(size: int, to: int, interpolation: Interpolation) -> np.ndarray:
    """Weights [to, size] in one dimension: half-pixel centres, repeated border values, no antialiasing."""
    centre = (np.arange(to) + 0.5) * size / to - 0.5
    low = np.floor(centre).astype(int)
    part = centre - low
    if interpolation == "bilinear":
        taps = {0: 1 - part, 1: part}
    elif interpolation == "bicubic":
        taps = {offset: _cubic(np.abs(part - offset)) for offset in (-1, 0, 1, 2)}
    else:
        raise ValueError(f"interpolation {interpolation!r}: expected 'bicubic' or 'bilinear'")
    weights = np.zeros((to, size))
    for offset, weight in taps.items():
        np.add.at(weights, (np.arange(to), np.clip(low + offset, 0, size - 1)), weight)
    return weights


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.75, the value that PyTorch uses."""
    a, d = -0.75, distance
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = a * (((d - 5) * d + 8) * d - 4)
    return np.where(d <= 1, near, np.where(d < 2, far, 0.0))


def square(value: Any, what: str, where: str) -> int:
    """The side of something square that a config gives as a number or a pair. Raises PretrainedError."""
    sides = {int(v) for v in value} if isinstance(value, (list, tuple)) else {value}
    if len(sides) != 1 or not isinstance(side := sides.pop(), int):
        raise PretrainedError(f"{where}: {what} is {value!r}, expected a square")
    return side


def activation(value: str, where: str) -> str:
    """A published activation in our words. Raises PretrainedError for one that the tower does not have."""
    if value not in _ACTIVATIONS:
        raise PretrainedError(f"{where}: hidden_act is {value!r}, expected one of {', '.join(map(repr, _ACTIVATIONS))}")
    return _ACTIVATIONS[value]


def sizes(tree: dict[str, Any], where: str, defaults: dict[str, Any], **ours: Any) -> Published:
    """The tower that a published config describes, from the field names that all families share.

    Args:
      tree: the published config; fields that it leaves out have the family's defaults.
      ours: further fields of `ViTConfig`.
    """
    tree = {**defaults, **tree}
    if tree.get("num_channels", 3) != 3:
        raise PretrainedError(f"{where}: num_channels is {tree['num_channels']}, expected 3 (red, green, blue)")
    width, heads = tree["hidden_size"], tree["num_attention_heads"]
    if tree.get("head_dim", width // heads) != width // heads:
        raise PretrainedError(
            f"{where}: head_dim is {tree['head_dim']}, expected hidden_size / heads = {width // heads}"
        )
    image_size, patch = (
        square(tree["image_size"], "image_size", where),
        square(tree["patch_size"], "patch_size", where),
    )
    image_size -= image_size % patch  # a convolution drops the rest
    config = ViTConfig(
        patch_size=patch,
        width=width,
        depth=tree["num_hidden_layers"],
        heads=heads,
        mlp_width=tree["intermediate_size"],
        layer_norm_eps=tree["layer_norm_eps"],
        activation=activation(tree["hidden_act"], where),
        **ours,
    )
    return Published(config, image_size, qkv_bias=tree.get("qkv_bias", True))
