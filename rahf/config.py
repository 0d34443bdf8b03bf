"""Frozen dataclasses that describe a run completely. A config file is Python returning a `Config`.

`load(path)` runs a config file, `to_json`/`from_json` save and restore; an unknown field is an error that
suggests the nearest name. The command line overrides any field (``--train.steps 10``).
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import json
import pathlib
import types
import typing
from typing import Any, Literal


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Training augmentations of spec 2.3. They act on image and heatmaps together. There are no flips:
    a flip would change "left" and "right" in the prompt."""

    crop_probability: float = 0.5
    crop_keep: tuple[float, float] = (0.8, 1.0)  # share of width and of height that a crop keeps
    crop_keeps_mass: float = 0.0  # refuse crops that keep less than this share of a heatmap's mass
    photometric_probability: float = 0.1
    brightness: float = 0.05  # largest change on a scale of 0..1
    contrast: tuple[float, float] = (0.8, 1.0)
    hue: float = 0.025  # largest turn, in turns
    saturation: tuple[float, float] = (0.8, 1.0)
    jpeg_quality: tuple[int, int] = (70, 100)
    grey_probability: float = 0.1


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read, and how it becomes batches."""

    path: str = "data/demo"  # folder written by `rahf prepare`
    train_split: str = "train"
    eval_split: str = "dev"
    batch_size: int = 64  # global, over all processes
    eval_batch_size: int = 64
    max_prompt_tokens: int = 64
    max_target_tokens: int = 64
    max_words: int = 64  # places for words; a prompt of 64 tokens has fewer
    tokenizer: str = "dataset"  # "dataset": the vocabulary beside the data; or a SentencePiece file
    workers: int = 0  # data worker processes; 0 decodes in threads of this process
    augment: AugmentConfig | None = AugmentConfig()


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Vision transformer (Dosovitskiy et al. 2021), pre-norm, learned position embeddings."""

    patch_size: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_width: int = 3072
    class_token: bool = False  # joins the sequence in front of the patches; dropped before the heads
    layer_norm_eps: float = 1e-6
    stem: tuple[int, ...] = ()  # widths of stride-2 3x3 convolutions before the patch embedding
    stem_blocks: int = 0  # residual 3x3 convolutions behind each of them
    dropout: float = 0.0
    activation: Literal["gelu", "gelu-tanh"] = "gelu"  # SigLIP towers use the tanh approximation
    layer_scale: bool = False  # a learned factor per channel on each residual branch (DINOv2)


@dataclasses.dataclass(frozen=True)
class T5Config:
    """T5 encoder and decoder. Defaults: the shapes of T5 v1.1 base."""

    vocab_size: int = 32128
    width: int = 768
    head_width: int = 64  # d_kv; T5 attention is not scaled
    heads: int = 12
    mlp_width: int = 2048
    encoder_layers: int = 12
    decoder_layers: int = 12
    ff: Literal["relu", "gated-gelu"] = "gated-gelu"
    tie_embeddings: bool = False  # t5-base ties and scales logits by width**-0.5
    relative_buckets: int = 32
    relative_max_distance: int = 128
    image_relative_bias: bool = True  # False: no relative bias between two image tokens
    dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class HeatmapHeadConfig:
    """Two convolutions, then stages of transposed convolution (stride 2) and two convolutions (spec 2.4)."""

    conv_widths: tuple[int, ...] = (768, 384)
    up_widths: tuple[int, ...] = (768, 384, 384, 192)  # one stage doubles the side
    norm: Literal["layer", "rms"] = "layer"
    residual: bool = False  # around the two convolutions of a stage, as in the public PyTorch port
    relu_before_norm: bool = False  # in the first convolutions, as in the public PyTorch port
    dropout: float = 0.0
    prior: float = 0.02  # output before training, about the mean of real heatmaps


@dataclasses.dataclass(frozen=True)
class ScoreHeadConfig:
    """Convolutions over the token grid, flatten, dense layers, sigmoid (spec 2.4)."""

    conv_widths: tuple[int, ...] = (768, 384, 128, 64)
    kernel_size: int = 2
    padding: Literal["SAME", "VALID"] = "SAME"
    pool: int = 0  # average the grid to pool x pool before flattening; 0 keeps the grid
    dense_widths: tuple[int, ...] = (2048, 1024)
    norm: Literal["layer", "rms"] = "layer"
    dropout: float = 0.0


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """The whole network. `image_size` is the side of the square that the network sees."""

    image_size: int = 512
    vit: ViTConfig = ViTConfig()
    t5: T5Config = T5Config()
    heatmap_head: HeatmapHeadConfig = HeatmapHeadConfig()
    score_head: ScoreHeadConfig = ScoreHeadConfig()
    decoder_sees: Literal["all", "text"] = "all"  # which fused tokens the decoder attends to
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    compute_dtype: Literal["float32", "bfloat16"] = "float32"  # parameters are always float32


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """Weights of the loss parts (spec 2.6; the paper's are not published).

    `heatmap_weight` multiplies the mean over the two heatmaps, `score_weight` the mean over the four
    scores, `keyword_weight` the cross-entropy of the target sequence.
    """

    heatmap_weight: float = 1.0
    score_weight: float = 1.0
    keyword_weight: float = 1.0
    suffix_weight: float = 1.0  # of the tokens that call a word misaligned, others 1; they are rare
    keyword_warmup_steps: int = 0  # its weight grows linearly over them: see first, then read
    heatmap_loss: Literal["mse", "weighted-mse", "bce"] = "mse"
    score_loss: Literal["mse", "bce"] = "mse"


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with warm-up (spec 2.7)."""

    learning_rate: float = 1e-4
    schedule: Literal["rsqrt", "cosine", "constant"] = "rsqrt"
    warmup_steps: int = 2000
    final_fraction: float = 0.0  # cosine ends at this share of the learning rate
    weight_decay: float = 0.01  # on matrices and kernels only
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    clip_norm: float = 1.0  # global gradient norm; 0 turns clipping off
    ema_decay: float = 0.0  # 0: none; else the averaged parameters are evaluated and kept as best


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How devices share the work: their numbers along the three axes; -1 takes what is left."""

    data: int = -1  # each sees other examples, all hold the parameters
    fsdp: int = 1  # each sees other examples and holds a share of the parameters
    tensor: int = 1  # share one layer's arithmetic


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Length, rhythm and bookkeeping of a run."""

    steps: int = 20_000
    seed: int = 0
    log_every: int = 50
    eval_every: int = 1000  # 0: only at the end
    eval_examples: int = 1000  # of the evaluation split, at most
    checkpoint_every: int = 1000
    keep_checkpoints: int = 2  # newest; the best one is kept besides
    best_metric: str = "scores/mean/plcc"
    best_mode: Literal["max", "min"] = "max"


@dataclasses.dataclass(frozen=True)
class Config:
    """Everything a run depends on; saved as `config.json` in the run directory."""

    workdir: str = "runs/unnamed"
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()
    train: TrainConfig = TrainConfig()


class ConfigError(ValueError):
    """A config has an unknown field or a value of the wrong kind; the message says where and what to write."""


def to_json(config: Config) -> str:
    """The config as indented JSON, fields in the order of the classes."""
    return json.dumps(dataclasses.asdict(config), indent=2) + "\n"


def from_json(text: str, cls: type = Config, where: str = "config") -> Any:
    """The inverse of `to_json`. Raises ConfigError for unknown fields and wrong kinds."""
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON ({error})") from error
    return from_dict(tree, cls, where)


def from_dict(tree: Any, cls: type, where: str) -> Any:
    """Builds a config dataclass from nested dicts. Missing fields keep their defaults.

    Raises:
      ConfigError: unknown field (with the nearest name) or a value of the wrong kind.
    """
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: expected fields of {cls.__name__}, found {tree!r}")
    hints = typing.get_type_hints(cls)
    for name in tree:
        if name not in hints:
            raise ConfigError(f"{where}: unknown field {name!r}.{suggest(name, list(hints))}")
    return cls(**{name: _convert(tree[name], hints[name], f"{where}.{name}") for name in tree})


def suggest(name: str, known: typing.Sequence[str]) -> str:
    """`` Did you mean 'x'?`` for the nearest known name, else the list of known names."""
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    return f" Did you mean {near[0]!r}?" if near else f" Known: {', '.join(sorted(known))}."


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_dict(value, hint, where)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        return _convert(value, next(a for a in args if a is not type(None)), where)
    if origin is Literal:
        if value not in args:
            raise ConfigError(f"{where}: {value!r} is not one of {', '.join(map(repr, args))}")
        return value
    if origin is tuple and isinstance(value, (list, tuple)):
        inner = args[0]
        if args[-1] is not Ellipsis and len(value) != len(args):
            raise ConfigError(f"{where}: expected {len(args)} values, found {value!r}")
        return tuple(_convert(v, inner, f"{where}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where}: expected {getattr(hint, '__name__', hint)}, found {value!r}")


def find(path: str) -> pathlib.Path:
    """A config file on disk, or of the same name among the configs that come with rahf.

    Raises:
      ConfigError: neither exists; the message lists what comes with rahf.
    """
    given = pathlib.Path(path)
    if given.is_file():
        return given
    here = pathlib.Path(__file__).resolve().parent
    shipped = [here / "configs", here.parent / "configs"]
    for folder in shipped:
        if (folder / given.name).is_file() and str(given.parent) in (".", "configs"):
            return folder / given.name
    names = sorted({f.name for folder in shipped if folder.is_dir() for f in folder.glob("[a-z]*.py")})
    raise ConfigError(f"no config file {path}.{suggest(given.name, names)}")


def load(path: str) -> Config:
    """Runs a config file and returns the `Config` that its `config()` returns.

    Args:
      path: a Python file, or the name of one that comes with rahf (``configs/demo.py``).

    Raises:
      ConfigError: no such file, an unknown field, or no function `config`.
    """
    file = find(path)
    module_spec = importlib.util.spec_from_file_location("rahf_config_file", file)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        made = module.config()
    except TypeError as error:
        raise ConfigError(f"{file}: {_with_suggestion(str(error))}") from error
    except AttributeError as error:
        raise ConfigError(f"{file}: must define config() -> rahf.config.Config ({error})") from error
    if not isinstance(made, Config):
        raise ConfigError(f"{file}: config() returned {type(made).__name__}, expected rahf.config.Config")
    return made


def _with_suggestion(message: str) -> str:
    """Adds the nearest field to Python's own 'unexpected keyword argument' message."""
    name = message.split("argument '")[-1].split("'")[0]
    classes = [c for c in globals().values() if dataclasses.is_dataclass(c)]
    owner = [c for c in classes if message.startswith(c.__name__ + ".") or message.startswith(c.__name__ + "(")]
    known = [f.name for c in owner or classes for f in dataclasses.fields(c)]
    return message + "." + suggest(name, known) if "unexpected keyword" in message else message
