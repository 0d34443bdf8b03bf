"""A model directory as a folder that `diffusers` loads: the inverse of `rahf import stable-diffusion`."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from safetensors.numpy import save_file

from rahf.config import ClipTextConfig, ControlNetConfig, SchedulerConfig, StableDiffusionConfig, UNetConfig
from rahf.core import licenses
from rahf.core.errors import CheckpointError, PretrainedError
from rahf.core.files import replacing_folder
from rahf.core.tree import Params
from rahf.diffusion import saved as saved_lib
from rahf.diffusion import weights
from rahf.diffusion.networks.stable_diffusion import StableDiffusion, is_inpainting, vae_scale_factor
from rahf.text import ClipTokenizer
from rahf.text.byte_pairs import END, START
from rahf.training.model_folder import check_free

_SCHEDULERS = {
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
    "dpmsolver++": "DPMSolverMultistepScheduler",
    "pndm": "PNDMScheduler",
}
#: Fields that each scheduler of `diffusers` has, besides those of all.
_SCHEDULER_FIELDS = {
    "ddim": ("set_alpha_to_one", "clip_sample", "clip_sample_range"),
    "ddpm": ("clip_sample", "clip_sample_range", "variance_type"),
    "euler": ("final_sigmas_type", "use_karras_sigmas"),
    "dpmsolver++": (
        *("solver_order", "solver_type", "lower_order_final", "euler_at_final", "final_sigmas_type"),
        "use_karras_sigmas",
    ),
    "pndm": ("set_alpha_to_one",),
}
_COMMON_FIELDS = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
    "rescale_betas_zero_snr",
)
_ACTIVATIONS = {"gelu": "gelu", "gelu-tanh": "gelu_pytorch_tanh", "quick-gelu": "quick_gelu"}


def export_diffusers(path: str | os.PathLike, out: str | os.PathLike) -> pathlib.Path:
    """Writes a model of the family "stable-diffusion" as a folder for `DiffusionPipeline.from_pretrained`.

    Args:
      path: run directory or checkpoint.
      out: folder to write; must not exist, or be empty.

    Raises:
      CheckpointError: no such model there.
      PretrainedError: `out` is not empty, or the model has squares of pixels in place of an autoencoder.
    """
    out = check_free(out)
    saved = saved_lib.find(path)
    model = saved.config.model
    if not isinstance(model, StableDiffusionConfig):
        raise CheckpointError(f"{saved.run}: a model of the family {model.family!r}, expected 'stable-diffusion'")
    if model.patches is not None:
        raise PretrainedError(f"{saved.run}: diffusers has no pipeline over squares of pixels (model.patches)")
    params = saved.params(lambda: StableDiffusion(model))
    notice = licenses.license_notice(saved.run)
    write_pipeline(out, model, params, saved.tokenizer(lambda tokenizer: None), notice or "")
    return out


def write_pipeline(
    folder: pathlib.Path, model: StableDiffusionConfig, params: Params, tokenizer: ClipTokenizer, notice: str = ""
) -> None:
    """Writes a pipeline; the folder appears complete or not at all. `notice` goes into its README.md."""
    with replacing_folder(folder) as unfinished:
        for part, tensors in weights.stored_tensors(params, model).items():
            (unfinished / part).mkdir()
            stem = "diffusion_pytorch_model" if part in ("unet", "vae") else "model"
            save_file(tensors, unfinished / part / f"{stem}.safetensors", metadata={"format": "pt"})
        for part, tree in part_configs(model).items():
            name = "scheduler_config.json" if part == "scheduler" else "config.json"
            (unfinished / part).mkdir(exist_ok=True)
            _write(unfinished / part / name, tree)
        for name, pad in zip(("tokenizer", "tokenizer_2"), model.pad_token_ids):
            (unfinished / name).mkdir()
            _write_tokenizer(unfinished / name, tokenizer, pad, model.text_encoder.positions)
        _write(unfinished / "model_index.json", model_index(model))
        if notice:
            (unfinished / "README.md").write_text(notice + "\n")


def model_index(model: StableDiffusionConfig) -> dict[str, Any]:
    """The content of `model_index.json`."""
    second = model.text_encoder_2 is not None
    name = f"StableDiffusion{'XL' if second else ''}{'Inpaint' if is_inpainting(model) else ''}Pipeline"
    tree = {
        "_class_name": name,
        "_diffusers_version": "0.35.0",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderTiny" if model.vae_tiny is not None else "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", _SCHEDULERS[model.scheduler.kind]],
        "feature_extractor": [None, None],
        "image_encoder": [None, None],
    }
    if second:
        extra = {
            "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
            "tokenizer_2": ["transformers", "CLIPTokenizer"],
            "force_zeros_for_empty_prompt": model.force_zeros_for_empty_prompt,
        }
        return tree | extra
    return tree | {"safety_checker": [None, None], "requires_safety_checker": False}


def part_configs(model: StableDiffusionConfig) -> dict[str, dict[str, Any]]:
    """The JSON configs of a pipeline's parts, by their folders."""
    factor = vae_scale_factor(model)
    if model.vae_tiny is not None:
        vae = {"_class_name": "AutoencoderTiny", "upsample_fn": "nearest", **_lists(vars(model.vae_tiny))}
    else:
        levels = len(model.vae.block_out_channels)
        vae = {
            "_class_name": "AutoencoderKL",
            "act_fn": "silu",
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "sample_size": model.image_size,
            **_lists(vars(model.vae)),
        }
    trees = {
        "unet": _unet(model.unet, model.image_size // factor),
        "vae": vae,
        "text_encoder": _text(model.text_encoder, model.pad_token_ids[0], 0),
        "scheduler": _scheduler(model.scheduler),
    }
    if model.text_encoder_2 is not None:
        trees["text_encoder_2"] = _text(model.text_encoder_2, model.pad_token_ids[1], model.text_projection_dim)
    return trees


def controlnet_config(config: ControlNetConfig) -> dict[str, Any]:
    """The content of a ControlNet's `config.json`."""
    tree = _unet(config.unet, 0)
    for name in ("up_block_types", "sample_size", "out_channels"):
        del tree[name]
    own = {name: value for name, value in _lists(vars(config)).items() if name != "unet"}
    return {**tree, "_class_name": "ControlNetModel", **own}


def _unet(unet: UNetConfig, sample_size: int) -> dict[str, Any]:
    tree = _lists(vars(unet))
    attends, heads = tree.pop("cross_attention"), tree.pop("num_attention_heads")
    sized = {name: tree.pop(name) for name in ("addition_time_embed_dim", "projection_class_embeddings_input_dim")}
    down = ["CrossAttnDownBlock2D" if level else "DownBlock2D" for level in attends]
    up = ["CrossAttnUpBlock2D" if level else "UpBlock2D" for level in reversed(attends)]
    return {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "mid_block_type": "UNetMidBlock2DCrossAttn",
        "sample_size": sample_size,
        "down_block_types": down,
        "up_block_types": up,
        "attention_head_dim": heads,
        **tree,
        **({"addition_embed_type": "text_time", **sized} if unet.addition_time_embed_dim else {}),
    }


def _text(text: ClipTextConfig, pad: int, projection: int) -> dict[str, Any]:
    return {
        "architectures": ["CLIPTextModelWithProjection" if projection else "CLIPTextModel"],
        "model_type": "clip_text_model",
        "vocab_size": text.vocab_size,
        "hidden_size": text.width,
        "intermediate_size": text.mlp_width,
        "num_hidden_layers": text.depth,
        "num_attention_heads": text.heads,
        "max_position_embeddings": text.positions,
        "layer_norm_eps": text.layer_norm_eps,
        "hidden_act": _ACTIVATIONS[text.activation],
        "eos_token_id": text.eos_token_id,
        "pad_token_id": pad,
        "projection_dim": projection or text.width,
    }


def _scheduler(scheduler: SchedulerConfig) -> dict[str, Any]:
    names = (*_COMMON_FIELDS, *_SCHEDULER_FIELDS[scheduler.kind])
    tree = {"_class_name": _SCHEDULERS[scheduler.kind], **{name: getattr(scheduler, name) for name in names}}
    if scheduler.kind == "pndm":
        del tree["rescale_betas_zero_snr"]
        tree["skip_prk_steps"] = True
    return tree


def _write_tokenizer(folder: pathlib.Path, tokenizer: ClipTokenizer, pad: int, length: int) -> None:
    tree = json.loads(tokenizer.model)
    vocabulary = tree["model"]["vocab"]
    merges = [m if isinstance(m, str) else " ".join(m) for m in tree["model"]["merges"]]
    added = {token["content"]: token["id"] for token in tree["added_tokens"]}
    pieces = {number: piece for piece, number in {**vocabulary, **added}.items()}
    (folder / "tokenizer.json").write_bytes(tokenizer.model)
    (folder / "vocab.json").write_text(json.dumps({**vocabulary, **added}, ensure_ascii=False))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": pieces[pad]}
    _write(folder / "special_tokens_map.json", special)
    _write(
        folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, **special}
    )


def _lists(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def _write(file: pathlib.Path, tree: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(tree, indent=2) + "\n")
