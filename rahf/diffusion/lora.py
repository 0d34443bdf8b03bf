"""Low-rank adapters (Hu et al. 2022) of Stable Diffusion in files: the dialects of peft, diffusers and kohya.

    lora = read("style.safetensors", pipe)             # any dialect, told by its names
    pipe.params = merged(pipe.params, lora, scale=0.8)
    write(lora, "style-kohya.safetensors", pipe, "kohya")

A layer changes its kernel by ``alpha / rank · A · B``. Names of layers are those of `diffusers`, such as
``unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q``; XL files of kohya name the same layers as the first
code of Stable Diffusion did (``input_blocks_4_1_…``).
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import warnings
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors
from safetensors.numpy import save_file

from rahf.config import UNetConfig
from rahf.core import json_text
from rahf.core.errors import ArgumentError, PretrainedError
from rahf.core.files import read_regular, replacing
from rahf.core.tree import Params, flatten, unflatten
from rahf.diffusion import weights
from rahf.diffusion.pipeline import Pipeline
from rahf.pretrained import clip, files
from rahf.pretrained.files import StoredTensor

Dialect = Literal["peft", "diffusers", "kohya"]
DIALECTS: tuple[Dialect, ...] = ("peft", "diffusers", "kohya")

#: Key of the JSON that diffusers writes into the file's metadata.
METADATA = "lora_adapter_metadata"
_ENDINGS = {  # A, B
    "peft": (".lora_A.weight", ".lora_B.weight"),
    "diffusers": (".lora.down.weight", ".lora.up.weight"),
    "kohya": (".lora_down.weight", ".lora_up.weight"),
}
#: Other spellings of the endings: of text towers, and of older versions of diffusers and peft.
_SPELLINGS = {
    ".lora_linear_layer.down.weight": ".lora.down.weight",
    ".lora_linear_layer.up.weight": ".lora.up.weight",
    ".lora_A.default.weight": ".lora_A.weight",
    ".lora_B.default.weight": ".lora_B.weight",
    ".processor.to_q_lora.": ".to_q.lora.",
    ".processor.to_k_lora.": ".to_k.lora.",
    ".processor.to_v_lora.": ".to_v.lora.",
    ".processor.to_out_lora.": ".to_out.0.lora.",
}
_PREFIXES = ("base_model.model.", "")  # peft's own files
_KOHYA = {"unet": ("lora_unet_",), "text_encoder": ("lora_te_", "lora_te1_"), "text_encoder_2": ("lora_te2_",)}


class LoraWarning(UserWarning):
    """Adapters change nothing."""


class Layer(NamedTuple):
    """The adapter of one kernel.

    Attributes:
      a: float32 [in, rank], of a convolution [y, x, in, rank].
      b: float32 [rank, out].
      alpha: scale times rank.
    """

    a: Any
    b: Any
    alpha: float

    @property
    def scale(self) -> float:
        """Factor of the product."""
        return self.alpha / self.b.shape[0]


@dataclasses.dataclass(frozen=True)
class Lora:
    """Adapters by the path of their kernel, such as ``unet/mid_block/resnets/0/conv1/kernel``."""

    layers: dict[str, Layer]

    @property
    def zero_layers(self) -> list[str]:
        """Paths of the kernels that do not change."""
        return [
            path for path, layer in self.layers.items() if not (np.any(layer.a) and np.any(layer.b) and layer.alpha)
        ]


def of_adapters(tree: Mapping[str, Any]) -> Lora:
    """The adapters of a run of `rahf train`: ``{"scale": …, "adapters": …}`` with leaves a and b under each kernel."""
    flat, scale = flatten(tree["adapters"]), float(tree["scale"])
    paths = [path.removesuffix("/a") for path in flat if path.endswith("/a")]
    sides = {path: (np.asarray(flat[f"{path}/a"]), np.asarray(flat[f"{path}/b"])) for path in paths}
    return Lora({path: Layer(a, b, scale * b.shape[0]) for path, (a, b) in sides.items()})


def merged(params: Params, lora: Lora, scale: float = 1.0) -> Params:
    """Parameters with the adapters added, ``W + scale · alpha / rank · A · B``; others are shared, not copied.

    Raises:
      ArgumentError: adapters of kernels that the parameters do not have; names the first.
    """
    flat = flatten(params)
    for path, layer in lora.layers.items():
        shape = (*layer.a.shape[:-1], layer.b.shape[-1])
        if path not in flat or tuple(flat[path].shape) != shape:
            wanted = tuple(flat[path].shape) if path in flat else "no such kernel"
            raise ArgumentError(f"adapter of {path}: changes a kernel of shape {shape}, the model has {wanted}")
        product = jnp.dot(layer.a, layer.b, precision="highest")
        flat[path] = flat[path] + scale * layer.scale * product
    return unflatten(flat)


def read(path: str | os.PathLike, pipe: Pipeline) -> Lora:
    """Reads a file of adapters, or the folder of one (``pytorch_lora_weights.safetensors``, peft's
    ``adapter_model.safetensors``).

    Args:
      pipe: the model that the adapters are for.

    Raises:
      PretrainedError: no such file; names that no dialect has; adapters for another model (names the first that does
        not fit), halves of adapters, or values that are not finite.

    Warns:
      LoraWarning: all adapters are zero, so they change nothing.
    """
    file = _file(pathlib.Path(path))
    stored = files.open_torch(file) if file.suffix in (".bin", ".pt", ".pth") else files.open_safetensors(file)
    tensors = {_plain(name): tensor for name, tensor in stored.items()}
    dialect = _dialect(tensors, file)
    ends, kernels = _ENDINGS[dialect], _kernels(pipe, dialect)
    alphas, shapes = _alphas(tensors, file, dialect), flatten(pipe.params)
    layers = {}
    for module in _modules(tensors, ends, file):
        kernel = kernels.get(_spelt(module, dialect))
        if kernel is None:
            raise PretrainedError(
                f"{file}: adapts {module}, which this model does not have: the adapters are for another base model"
            )
        sides = [tensors.get(module + end) for end in ends]
        if None in sides:
            raise PretrainedError(f"{file}: {module} has one half of an adapter only; download the file again")
        a, b = _sides(*sides, tuple(shapes[kernel].shape), module, file)
        layers[kernel] = Layer(a, b, alphas.get(module, float(b.shape[0])))
    lora = Lora(layers)
    if len(lora.zero_layers) == len(layers):
        warnings.warn(f"{file}: all {len(layers)} adapters are zero: they change nothing", LoraWarning, stacklevel=2)
    return lora


def write(lora: Lora, path: str | os.PathLike, pipe: Pipeline, dialect: Dialect = "peft") -> None:
    """Writes adapters as one safetensors file.

    Args:
      path: ends in ".safetensors"; ``pytorch_lora_weights.safetensors`` in a folder is what diffusers looks for.
      pipe: the model that the adapters are for.
      dialect: "peft" is what diffusers writes today, with its metadata; "diffusers" what it wrote before, which has no
        alpha, so that the scale becomes part of B; "kohya" is that of most published files.

    Raises:
      ArgumentError: another dialect, no adapters, or adapters of kernels that the model does not have.
    """
    if dialect not in DIALECTS:
        raise ArgumentError(f"dialect: expected {', '.join(DIALECTS)}, found {dialect!r}")
    if not lora.layers:
        raise ArgumentError("lora: there are no adapters to write")
    names, (end_a, end_b) = module_names(pipe, dialect), _ENDINGS[dialect]
    is_pointwise = weights.pointwise(pipe.config.model.unet.use_linear_projection)
    tensors: dict[str, np.ndarray] = {}
    for kernel, layer in lora.layers.items():
        if kernel not in names:
            raise ArgumentError(f"adapter of {kernel}: the model has no such kernel in its U-Net and text towers")
        a, b = np.asarray(layer.a, np.float32), np.asarray(layer.b, np.float32).T
        b = b * np.float32(layer.scale) if dialect == "diffusers" else b
        is_conv = a.ndim == 4 or (kernel.startswith("unet/") and is_pointwise(kernel))
        a = a.transpose(3, 2, 0, 1) if a.ndim == 4 else a.T
        for end, side in ((end_a, a), (end_b, b)):
            side = side[..., None, None] if is_conv and side.ndim == 2 else side
            tensors[names[kernel] + end] = np.ascontiguousarray(side)
        if dialect == "kohya":
            tensors[f"{names[kernel]}.alpha"] = np.array(layer.alpha, np.float32)
    metadata = {"format": "pt"}
    if dialect == "peft":
        metadata[METADATA] = json.dumps(_metadata(lora, names), indent=2, sort_keys=True)
    with replacing(path) as unfinished:
        save_file(tensors, unfinished, metadata=metadata)


def module_names(pipe: Pipeline, dialect: Dialect) -> dict[str, str]:
    """Path of each kernel of U-Net and text towers → the name of its layer in a dialect."""
    names = {}
    second = "text_encoder_2" in pipe.params
    for part in ("unet", *_TEXT):
        for path in flatten(pipe.params.get(part, {})):
            if path.endswith("kernel"):
                inside = _text_module(path) if part in _TEXT else path.removesuffix("/kernel").replace("/", ".")
                kohya = _KOHYA[part][1 if part == "text_encoder" and second else 0] + inside.replace(".", "_")
                names[f"{part}/{path}"] = kohya if dialect == "kohya" else f"{part}.{inside}"
    return names


def _kernels(pipe: Pipeline, dialect: Dialect) -> dict[str, str]:
    """Name of a layer in a dialect → path of its kernel."""
    kernels = {name: path for path, name in module_names(pipe, dialect).items()}
    if dialect != "kohya":
        return kernels
    first = _first_names(pipe.config.model.unet)
    for name, path in list(kernels.items()):
        for prefix in _KOHYA["text_encoder"]:
            kernels[name.replace("lora_te1_", prefix)] = path
        if path.startswith("unet/"):
            module = path.removeprefix("unet/").removesuffix("/kernel").replace("/", ".")
            place = max((p for p in first if f"{module}.".startswith(f"{p}.")), key=len, default=None)
            if place is not None:
                rest = _FIRST_RESNET.get(module.removeprefix(place), module.removeprefix(place))
                kernels["lora_unet_" + (first[place] + rest).replace(".", "_")] = path
    return kernels


#: Layers of a residual block in the first code of Stable Diffusion, which kohya's files of XL name.
_FIRST_RESNET = {
    ".conv1": ".in_layers.2",
    ".conv2": ".out_layers.3",
    ".time_emb_proj": ".emb_layers.1",
    ".conv_shortcut": ".skip_connection",
}


def _first_names(unet: UNetConfig) -> dict[str, str]:
    """Blocks of a U-Net by their names here → in the first code, which numbers them through."""
    names = {
        "conv_in": "input_blocks.0.0",
        "conv_out": "out.2",
        "time_embedding.linear_1": "time_embed.0",
        "time_embedding.linear_2": "time_embed.2",
        "add_embedding.linear_1": "label_emb.0.0",
        "add_embedding.linear_2": "label_emb.0.2",
        "mid_block.resnets.0": "middle_block.0",
        "mid_block.attentions.0": "middle_block.1",
        "mid_block.resnets.1": "middle_block.2",
    }
    number, levels = 1, len(unet.block_out_channels)
    for level in range(levels):
        for layer in range(unet.layers_per_block):
            names[f"down_blocks.{level}.resnets.{layer}"] = f"input_blocks.{number}.0"
            names[f"down_blocks.{level}.attentions.{layer}"] = f"input_blocks.{number}.1"
            number += 1
        names[f"down_blocks.{level}.downsamplers.0.conv"] = f"input_blocks.{number}.0.op"
        number += 1
    number = 0
    for block in range(levels):
        for layer in range(unet.layers_per_block + 1):
            names[f"up_blocks.{block}.resnets.{layer}"] = f"output_blocks.{number}.0"
            names[f"up_blocks.{block}.attentions.{layer}"] = f"output_blocks.{number}.1"
            number += 1
        place = 2 if unet.cross_attention[levels - 1 - block] else 1
        names[f"up_blocks.{block}.upsamplers.0.conv"] = f"output_blocks.{number - 1}.{place}.conv"
    return names


_TEXT = ("text_encoder", "text_encoder_2")


def _text_module(path: str) -> str:
    """layer_3/query/kernel → text_model.encoder.layers.3.self_attn.q_proj."""
    layer, part, _ = path.split("/")
    return "text_model." + clip.NAMES.layer.format(layer.removeprefix("layer_")) + getattr(clip.NAMES, part)


def _file(path: pathlib.Path) -> pathlib.Path:
    if not path.is_dir():
        if not path.is_file():
            raise PretrainedError(f"{path}: no such file; expected adapters in safetensors")
        return path
    for name in ("pytorch_lora_weights.safetensors", "adapter_model.safetensors"):
        if (path / name).is_file():
            return path / name
    there = sorted(path.glob("*.safetensors"))
    if len(there) == 1:
        return there[0]
    raise PretrainedError(
        f"{path}: expected one file of adapters (pytorch_lora_weights.safetensors), found {len(there)}"
    )


def _plain(name: str) -> str:
    """A tensor's name in the one spelling of its dialect."""
    for spelling, plain in _SPELLINGS.items():
        name = name.replace(spelling, plain)
    return name.removeprefix(_PREFIXES[0])


def _modules(tensors: Mapping[str, StoredTensor], ends: tuple[str, str], file: pathlib.Path) -> list[str]:
    """Names of the adapted layers; every tensor must belong to one."""
    foreign = [name for name in tensors if not name.endswith((*ends, ".alpha"))]
    if foreign:
        raise PretrainedError(
            f"{file}: {foreign[0]} is no part of a low-rank adapter ({' or '.join(ends)}); other kinds are refused"
        )
    return sorted({name.removesuffix(end) for name in tensors for end in ends if name.endswith(end)})


def _dialect(tensors: Mapping[str, StoredTensor], file: pathlib.Path) -> Dialect:
    for dialect, ends in _ENDINGS.items():
        if any(name.endswith(ends) for name in tensors):
            return dialect
    first = next(iter(tensors), "nothing")
    raise PretrainedError(f"{file}: no adapters: expected names that end in {_ENDINGS['peft'][0]}, found {first}")


def _spelt(module: str, dialect: Dialect) -> str:
    """A layer's name as `module_names` has it: which part it belongs to may be left out or abbreviated."""
    if dialect == "kohya":
        return module
    if not module.startswith(("unet.", *(f"{part}." for part in _TEXT))):
        module = f"unet.{module}"  # peft's files of a U-Net alone
    for part in _TEXT:
        rest = module.removeprefix(f"{part}.")
        if rest != module and not rest.startswith("text_model."):
            return f"{part}.text_model.{rest}"
    return module


def _alphas(tensors: Mapping[str, StoredTensor], file: pathlib.Path, dialect: Dialect) -> dict[str, float]:
    """Alpha by the layer's name in the file; where there is none, alpha is the rank."""
    alphas = {n.removesuffix(".alpha"): float(t.load()) for n, t in tensors.items() if n.endswith(".alpha")}
    if dialect == "kohya" or file.suffix != ".safetensors":
        return alphas
    with safetensors.safe_open(file, framework="np") as handle:
        text = (handle.metadata() or {}).get(METADATA)
    beside = file.parent / "adapter_config.json"
    if text is None and not (file.name == "adapter_model.safetensors" and beside.is_file()):
        return alphas
    try:
        tree = json_text.parse(text if text is not None else read_regular(beside))
        for name in tensors:
            for end in _ENDINGS[dialect]:
                module = name.removesuffix(end)
                if module != name and module not in alphas and (alpha := _of_metadata(tree, module)) is not None:
                    alphas[module] = alpha
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise PretrainedError(f"{file}: its metadata cannot be read ({error})") from error
    return alphas


def _of_metadata(tree: Mapping[str, Any], module: str) -> float | None:
    part = next((p for p in ("unet", *_TEXT) if module.startswith(f"{p}.")), "")
    inside = module.removeprefix(f"{part}.") if part else module
    key = lambda name: f"{part}.{name}" if f"{part}.{name}" in tree else name  # noqa: E731
    patterns = tree.get(key("alpha_pattern")) or {}
    for pattern, alpha in patterns.items():
        if inside == pattern or inside.endswith("." + pattern):
            return float(alpha)
    alpha = tree.get(key("lora_alpha"))
    return None if alpha is None else float(alpha)


def _sides(
    a: StoredTensor, b: StoredTensor, shape: tuple[int, ...], module: str, file: pathlib.Path
) -> tuple[np.ndarray, np.ndarray]:
    """A and B in the layout of kernels."""
    *window, inputs, outputs = shape
    rank = a.shape[0] if a.shape else 0
    expected_a = [(rank, inputs, *window)] if window else [(rank, inputs), (rank, inputs, 1, 1)]
    expected_b = [(outputs, rank), (outputs, rank, 1, 1)]
    for side, expected in ((a, expected_a), (b, expected_b)):
        if side.shape not in expected:
            raise PretrainedError(
                f"{file}: {module} has a side of shape {side.shape}, expected {expected[0]}: the adapters are for "
                "another base model"
            )
    values = [side.load() for side in (a, b)]
    if not all(np.isfinite(x).all() for x in values):
        raise PretrainedError(f"{file}: {module} has values that are not finite")
    of_a = values[0].transpose(2, 3, 1, 0) if window else values[0].reshape(rank, inputs).T
    return np.ascontiguousarray(of_a), np.ascontiguousarray(values[1].reshape(outputs, rank).T)


def _metadata(lora: Lora, names: Mapping[str, str]) -> dict[str, Any]:
    """The arguments of peft's `LoraConfig` for each part, as diffusers writes them."""
    tree: dict[str, Any] = {}
    for part in ("unet", *_TEXT):
        of_part = {names[k].removeprefix(f"{part}."): x for k, x in lora.layers.items() if k.startswith(f"{part}/")}
        if not of_part:
            continue
        ranks, alphas = {n: x.b.shape[0] for n, x in of_part.items()}, {n: x.alpha for n, x in of_part.items()}
        rank, alpha = next(iter(ranks.values())), next(iter(alphas.values()))
        tree |= {
            f"{part}.r": rank,
            f"{part}.lora_alpha": alpha,
            f"{part}.target_modules": sorted(of_part),
            f"{part}.rank_pattern": {n: r for n, r in ranks.items() if r != rank},
            f"{part}.alpha_pattern": {n: a for n, a in alphas.items() if a != alpha},
        }
    return tree
