"""The JSON configs of `diffusers` → configs here. Fields that change the network and are not supported are refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from rahf.config import (
    AutoencoderKLConfig,
    AutoencoderTinyConfig,
    ClipTextConfig,
    ControlNetConfig,
    SchedulerConfig,
    UNetConfig,
    from_dict,
)
from rahf.core.errors import PretrainedError
from rahf.pretrained import clip

Json = Mapping[str, Any]


class PublishedScheduler(NamedTuple):
    """A scheduler, and the name of the published one if that is not supported and DDIM takes its place, else ""."""

    config: SchedulerConfig
    replaced: str


#: Fields of a U-Net that must have these values, here and where they are missing.
_UNET_FIXED = {
    "_class_name": "UNet2DConditionModel",
    "center_input_sample": False,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "reverse_transformer_layers_per_block": None,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "dual_cross_attention": False,
    "class_embed_type": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
}
#: Blocks of a U-Net, on the way down and up, and whether they have transformers.
_DOWN = {"CrossAttnDownBlock2D": True, "DownBlock2D": False}
_UP = {"CrossAttnUpBlock2D": True, "UpBlock2D": False}
_UNET_DEFAULTS = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280),
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "use_linear_projection": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
}
#: Fields of a ControlNet that must have these values, besides those of its U-Net.
_CONTROLNET_FIXED = {"_class_name": "ControlNetModel", "global_pool_conditions": False}
_VAE_FIXED = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
}
_SCHEDULERS = {
    "DDIMScheduler": "ddim",
    "DDPMScheduler": "ddpm",
    "EulerDiscreteScheduler": "euler",
    "DPMSolverMultistepScheduler": "dpmsolver++",
    "PNDMScheduler": "pndm",
}
#: Defaults of `diffusers` that differ from scheduler to scheduler.
_SCHEDULER_DEFAULTS = {
    "ddim": {"timestep_spacing": "leading", "clip_sample": True},
    "ddpm": {"timestep_spacing": "leading", "clip_sample": True},
    "euler": {"timestep_spacing": "linspace"},
    "dpmsolver++": {"timestep_spacing": "linspace"},
    "pndm": {"timestep_spacing": "leading", "set_alpha_to_one": False, "clip_sample": False},
}
#: Of all schedulers.
_SCHEDULER_FIXED = {
    "trained_betas": None,
    "thresholding": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_lu_lambdas": False,
    "use_flow_sigmas": False,
    "use_dynamic_shifting": False,
    "interpolation_type": "linear",
    "timestep_type": "discrete",
    "algorithm_type": "dpmsolver++",
    "sigma_min": None,
    "sigma_max": None,
}
_TINY_FIXED = {
    "_class_name": "AutoencoderTiny",
    "act_fn": "relu",
    "upsample_fn": "nearest",
    "upsampling_scaling_factor": 2,
    "shift_factor": 0.0,
    "latent_magnitude": 3,
}


def unet(tree: Json, where: str) -> UNetConfig:
    """The U-Net that `unet/config.json` describes.

    Raises:
      PretrainedError: another kind of network; names the field, its value, and the one that is supported.
    """
    _check_fixed(tree, _UNET_FIXED, where)
    tree = {**_UNET_DEFAULTS, **{name: value for name, value in tree.items() if value is not None}}
    levels = len(tree["block_out_channels"])
    down, up = tuple(tree["down_block_types"]), tuple(tree["up_block_types"])
    for field, types, known in (("down_block_types", down, _DOWN), ("up_block_types", up, _UP)):
        if len(types) != levels or not set(types) <= set(known):
            raise PretrainedError(f"{where}: {field} is {list(types)}, expected {levels} of {', '.join(known)}")
    attends = tuple(_DOWN[kind] for kind in down)
    if tuple(_UP[kind] for kind in reversed(up)) != attends:
        raise PretrainedError(f"{where}: up_block_types {list(up)} do not mirror down_block_types {list(down)}")
    added = tree.get("addition_embed_type")
    if added not in (None, "text_time"):
        raise PretrainedError(f"{where}: addition_embed_type is {added!r}, expected null or 'text_time'")
    per_level = lambda name: _per_level(tree[name], levels, f"{where}: {name}")  # noqa: E731
    layers = {*per_level("layers_per_block")}
    widths = {*per_level("cross_attention_dim")}
    if len(layers) > 1 or len(widths) > 1:
        raise PretrainedError(f"{where}: layers_per_block and cross_attention_dim must be the same at all levels")
    heads = "num_attention_heads" if tree.get("num_attention_heads") is not None else "attention_head_dim"
    return UNetConfig(
        in_channels=tree["in_channels"],
        out_channels=tree["out_channels"],
        block_out_channels=tuple(tree["block_out_channels"]),
        cross_attention=attends,
        layers_per_block=layers.pop(),
        transformer_layers_per_block=per_level("transformer_layers_per_block"),
        num_attention_heads=per_level(heads),  # called attention_head_dim by a mistake that became the format
        cross_attention_dim=widths.pop(),
        norm_num_groups=tree["norm_num_groups"],
        norm_eps=tree["norm_eps"],
        use_linear_projection=tree["use_linear_projection"],
        flip_sin_to_cos=tree["flip_sin_to_cos"],
        freq_shift=tree["freq_shift"],
        addition_time_embed_dim=tree["addition_time_embed_dim"] if added else 0,
        projection_class_embeddings_input_dim=tree["projection_class_embeddings_input_dim"] if added else 0,
    )


def controlnet(tree: Json, where: str) -> ControlNetConfig:
    """The ControlNet that its `config.json` describes. Raises PretrainedError as `unet`."""
    _check_fixed(tree, _CONTROLNET_FIXED, where)
    order = tree.get("controlnet_conditioning_channel_order") or "rgb"
    if order not in ("rgb", "bgr"):
        raise PretrainedError(f"{where}: controlnet_conditioning_channel_order is {order!r}, expected 'rgb' or 'bgr'")
    down = tree.get("down_block_types") or _UNET_DEFAULTS["down_block_types"]
    # It has no way up: that of its U-Net mirrors the way down.
    up = ["CrossAttnUpBlock2D" if _DOWN.get(kind) else "UpBlock2D" for kind in reversed(down)]
    of_unet = {**tree, "_class_name": _UNET_FIXED["_class_name"], "up_block_types": up}
    defaults = ControlNetConfig()
    widths = tree.get("conditioning_embedding_out_channels") or defaults.conditioning_embedding_out_channels
    channels = tree.get("conditioning_channels") or defaults.conditioning_channels
    for name, values in (("conditioning_embedding_out_channels", widths), ("conditioning_channels", [channels])):
        if not all(isinstance(value, int) and value > 0 for value in values):
            raise PretrainedError(f"{where}: {name} is {tree[name]!r}, expected whole numbers above 0")
    return ControlNetConfig(unet(of_unet, where), channels, tuple(widths), order)


def vae(tree: Json, where: str) -> AutoencoderKLConfig:
    """The autoencoder that `vae/config.json` describes. Raises PretrainedError as `unet`."""
    _check_fixed(tree, _VAE_FIXED, where)
    for field, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        if {*tree.get(field, [kind])} != {kind}:
            raise PretrainedError(f"{where}: {field} is {list(tree[field])}, expected {kind} only")
    defaults = AutoencoderKLConfig(block_out_channels=(64,), layers_per_block=1)  # those of `diffusers`
    return _fields(AutoencoderKLConfig, defaults, tree)


def tiny_vae(tree: Json, where: str) -> AutoencoderTinyConfig:
    """The tiny autoencoder that `vae/config.json` describes. Raises PretrainedError as `unet`."""
    _check_fixed(tree, _TINY_FIXED, where)
    return _fields(AutoencoderTinyConfig, AutoencoderTinyConfig(), tree)


def text_encoder(tree: Json, where: str) -> ClipTextConfig:
    """The text tower that `text_encoder/config.json` describes. Raises PretrainedError for another kind of tower."""
    kinds = ("clip_text_model", "clip")
    if tree.get("model_type", kinds[0]) not in kinds:
        raise PretrainedError(f"{where}: model_type is {tree['model_type']!r}, expected CLIP's text tower ({kinds[0]})")
    return clip.text_config(dict(tree), where)


def scheduler(tree: Json, where: str) -> PublishedScheduler:
    """The scheduler that `scheduler/scheduler_config.json` describes.

    One of another kind over the same noise (LMS, UniPC, PNDM with Runge-Kutta steps, …) is replaced by DDIM without
    noise: networks do not depend on the scheduler that samples from them.

    Raises:
      PretrainedError: noise of another kind (flow matching), or options that are not supported; names them.
    """
    name = str(tree.get("_class_name", "DDIMScheduler"))
    if "beta_start" not in tree and name not in _SCHEDULERS:
        raise PretrainedError(f"{where}: {name} has no betas; expected one of {', '.join(_SCHEDULERS)}")
    published = name in _SCHEDULERS and (name != "PNDMScheduler" or bool(tree.get("skip_prk_steps", False)))
    kind = _SCHEDULERS[name] if published else "ddim"
    _check_fixed(tree, {k: v for k, v in _SCHEDULER_FIXED.items() if published or k in ("trained_betas",)}, where)
    if published and float(tree.get("lambda_min_clipped") or "-inf") > -1e9:
        raise PretrainedError(f"{where}: lambda_min_clipped is {tree['lambda_min_clipped']}, expected none (-inf)")
    if tree.get("solver_order", 2) not in (1, 2):
        raise PretrainedError(f"{where}: solver_order is {tree['solver_order']}, expected 1 or 2")
    defaults = {
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "steps_offset": 0,
        "set_alpha_to_one": True,
        **_SCHEDULER_DEFAULTS[kind],
    }
    known = vars(SchedulerConfig())
    stated = {name: value for name, value in tree.items() if name in known and value is not None}
    fields = {**defaults, **stated}
    if not published:  # LMS, UniPC and the like never clip
        fields["clip_sample"] = bool(tree.get("clip_sample", False))
    config = from_dict({**fields, "kind": kind}, SchedulerConfig, where)
    return PublishedScheduler(config, "" if published else name)


def _fields(cls: Callable[..., Any], defaults: Any, tree: Json) -> Any:
    """The config with the fields of the JSON that have the same names."""
    values = {name: tree[name] for name in vars(defaults) if tree.get(name) is not None}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
    return cls(**{**vars(defaults), **values})


def _per_level(value: Any, levels: int, what: str) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, (list, tuple)) else (value,) * levels
    if len(values) != levels or not all(isinstance(v, int) for v in values):
        raise PretrainedError(f"{what} is {value!r}, expected a number, or {levels}, one per level")
    return values


def _check_fixed(tree: Json, fixed: Json, where: str) -> None:
    for name, value in fixed.items():
        if tree.get(name, value) != value and not (tree[name] in (None, False) and value in (None, False)):
            raise PretrainedError(
                f"{where}: {name} is {tree[name]!r}, expected {value!r}: this kind of network is not supported"
            )


__all__ = ["PublishedScheduler", "controlnet", "scheduler", "text_encoder", "tiny_vae", "unet", "vae"]
