"""A critic inside stock `diffusers` pipelines: guidance as a step callback, and inpainting that keeps the best of N.

    guidance = Guidance(critic, "a red cat", score="overall", scale=0.1)
    pipe("a red cat", callback_on_step_end=guidance, callback_on_step_end_tensor_inputs=guidance.tensor_inputs)

    repaired = inpaint_best_of(inpaint_pipe, critic, picture, "a red cat", n=4)

This module does not import `diffusers`; the pipelines are the caller's.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from rahf.core.errors import ArgumentError
from rahf.critic.critic import Critic
from rahf.interop.torch import _torch, as_torch

if TYPE_CHECKING:
    import torch

    from rahf.steer.repaint import Repair


class Guidance:
    """Steers the latents of a running pipeline towards higher scores (universal guidance, Bansal et al. 2023).

    After a step of the scheduler, the picture that the latents lead to is predicted,
    ``x0 = (z - sqrt(1 - abar) · eps) / sqrt(abar)``, decoded and scored. The latents move against the gradient g of
    the energy ``1 - score``, normalised per sample to the norm of eps:
    ``z ← z - scale · sqrt(1 - abar) · |eps| / |g| · g``. The noise prediction counts as constant unless
    `through_denoiser` is set, which costs a backward pass of the denoiser.

    Attributes:
      tensor_inputs: for the pipeline's `callback_on_step_end_tensor_inputs`.
      energies: list, one float array [B] per guided or last step: the energy before that step's move.
    """

    tensor_inputs = ["latents", "prompt_embeds"]

    def __init__(
        self,
        critic: Critic,
        prompts: str | Sequence[str],
        score: str | Mapping[str, float] = "overall",
        scale: float = 0.1,
        window: tuple[float, float] = (0.1, 1.0),
        repeats: int = 1,
        through_denoiser: bool = False,
    ):
        """Prepares guidance; one object serves one call of a pipeline at a time.

        Args:
          critic: of `rahf.load`.
          prompts: of the pipeline's pictures: one for all, or those that the pipeline is given; each is repeated for
            `num_images_per_prompt`.
          score: to be raised: a name of `rahf.core.batch.SCORES`, or weights by name.
          scale: step size; spec: start with 0.05 to 0.5.
          window: lowest and highest share of signal `abar` at which latents are moved; at lower `abar` the predicted
            picture is unlike any that the critic was trained on.
          repeats: moves per step of the scheduler.
          through_denoiser: follow the gradient through the noise prediction, too.

        Raises:
          ValueError: an unknown score (suggests the nearest), or numbers that make no sense.
        """
        if not (np.isfinite(scale) and scale >= 0) or repeats < 1 or not 0 <= window[0] < window[1] <= 1:
            raise ArgumentError(
                f"guidance: expected scale >= 0, repeats >= 1 and 0 <= window[0] < window[1] <= 1, found {scale}, "
                f"{repeats} and {window}"
            )
        self.reward, self.prompts = as_torch(critic, score), prompts
        self.scale, self.window, self.repeats, self.through_denoiser = scale, window, repeats, through_denoiser
        self.energies: list[np.ndarray] = []
        self._prompts: str | list[str] = prompts  # one for all, or one per picture of the running call

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """The callback: moves `latents`, whose type and device do not change.

        Raises:
          ArgumentError: the pipeline's scheduler or its tensors are not those of a latent diffusion model with a
            variance-preserving scheduler (DDIM, DDPM, PNDM, DPM-Solver, …); the pipeline has no `unet` or `vae`; its
            denoiser takes more than latents and a prompt (ControlNet, adapters, SDXL, 9-channel inpainting, …), which a
            callback is not given; or the number of prompts does not divide that of the pictures. Names the part.
        """
        torch = _torch()
        if not {"latents", "prompt_embeds"} <= tensors.keys():
            raise ArgumentError(
                "guidance: pass callback_on_step_end_tensor_inputs=guidance.tensor_inputs to the pipeline"
            )
        latents, embeds = tensors["latents"], tensors["prompt_embeds"]
        if step == 0:
            self.energies = []
            _check_pipeline(pipe, latents)
            self._prompts = self._per_picture(len(latents))
        timestep_after, abar = _after(pipe.scheduler, step, timestep, getattr(pipe, "num_timesteps", None))
        if not (self.window[0] <= abar <= self.window[1]):
            return {}
        moved = latents.float()
        with torch.enable_grad():  # pipelines switch gradients off
            for _ in range(1 if timestep_after is None else self.repeats):
                moved = self._move(pipe, moved, latents.dtype, timestep_after, abar, embeds[-len(latents) :])
        return {"latents": moved.to(latents.dtype)}

    def _per_picture(self, count: int) -> str | list[str]:
        """The prompts, each as many times in a row as the pipeline makes pictures of it (`num_images_per_prompt`)."""
        if isinstance(self.prompts, str):
            return self.prompts
        prompts = list(self.prompts)
        if not prompts or count % len(prompts):
            raise ArgumentError(
                f"guidance: {count} pictures but {len(prompts)} prompts; give one prompt for all pictures, or those "
                "that the pipeline is given"
            )
        return [prompt for prompt in prompts for _ in range(count // len(prompts))]

    def _move(self, pipe: Any, latents: Any, dtype: Any, timestep: Any, abar: float, embeds: Any) -> Any:
        """Latents moved once; after the last step (`timestep` None) the energy is measured and nothing moves."""
        torch = _torch()
        z = latents.detach().requires_grad_()
        noise = torch.zeros_like(z)
        if timestep is not None:
            with torch.set_grad_enabled(self.through_denoiser):
                options = {"encoder_hidden_states": embeds}
                if scales := getattr(pipe, "cross_attention_kwargs", None):  # the scale of a LoRA
                    options["cross_attention_kwargs"] = scales
                model_output = pipe.unet(z.to(dtype), timestep, **options).sample.float()
            noise = _noise(pipe.scheduler, model_output, z, abar)
        pred_original_sample = (z - (1 - abar) ** 0.5 * noise) / abar**0.5
        energy = 1 - self.reward(decode(pipe, pred_original_sample, dtype), self._prompts)
        self.energies.append(energy.detach().cpu().numpy())
        if timestep is None or self.scale == 0:
            return z.detach()
        (gradient,) = torch.autograd.grad(energy.sum(), z)
        norm = gradient.flatten(1).norm(dim=1)
        strength = self.scale * (1 - abar) ** 0.5 * noise.detach().flatten(1).norm(dim=1) / norm
        # A sample without a usable gradient is not moved; the others are.
        usable = torch.isfinite(gradient).flatten(1).all(1) & torch.isfinite(strength) & (norm > 0)
        direction = torch.where(usable[:, None, None, None], gradient, 0.0)
        return z.detach() - torch.where(usable, strength, 0.0)[:, None, None, None] * direction


def _check_pipeline(pipe: Any, latents: torch.Tensor) -> None:
    """Refuses a pipeline whose denoiser or decoder this guidance cannot call as the pipeline does; names the part.

    The denoiser is called with latents, timestep and the embedded prompt, which is all that a callback is given. Of a
    network that takes more, the prediction would be another than the pipeline's own.
    """
    name = type(pipe).__name__
    for part, what in (("unet", "denoiser"), ("vae", "decoder")):
        if getattr(pipe, part, None) is None:
            raise ArgumentError(f"guidance: {name} has no `{part}`, the {what} of Stable Diffusion; {_USABLE}")
    config = pipe.unet.config
    extra = {
        "a ControlNet": getattr(pipe, "controlnet", None) is not None,
        "a T2I adapter": getattr(pipe, "adapter", None) is not None,
        "an IP adapter": getattr(config, "encoder_hid_dim_type", None) == "ip_image_proj",
        "SDXL's sizes and pooled prompt": getattr(config, "addition_embed_type", None) is not None,
        "a class or noise level": getattr(config, "num_class_embeds", None) is not None
        or getattr(config, "class_embed_type", None) is not None,
        "an embedded guidance scale (LCM)": getattr(config, "time_cond_proj_dim", None) is not None,
    }
    channels = getattr(config, "in_channels", latents.shape[1])
    extra[f"{channels} channels, of which {latents.shape[1]} are latents,"] = channels != latents.shape[1]
    found = [what for what, there in extra.items() if there]
    if found:
        raise ArgumentError(
            f"guidance: the denoiser of {name} is given {found[0]} besides latents and prompt, and a callback is not; "
            f"{_USABLE}, or let several pictures be made and keep the best (rahf.steer)"
        )


_USABLE = "use StableDiffusionPipeline, or its image-to-image or 4-channel inpainting pipeline"


def _after(scheduler: Any, step: int, timestep: Any, count: int | None = None) -> tuple[Any, float]:
    """Timestep of the latents after a step, and their abar; (None, 1) after the last one.

    A pipeline that starts from a picture (strength below 1) counts its steps from 0, but `scheduler.timesteps` holds
    those before its first one, too. So the step is found by its timestep. Some schedulers have two of one timestep:
    then the number of steps that the pipeline makes, `count`, says from which on it counts.
    """
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    if alphas_cumprod is None or float(scheduler.init_noise_sigma) != 1.0:
        raise ArgumentError(
            f"guidance: {type(scheduler).__name__} does not keep the variance of latents (no alphas_cumprod, or its "
            "own scaling); use DDIMScheduler, DDPMScheduler, PNDMScheduler or DPMSolverMultistepScheduler"
        )
    timesteps = [int(t) for t in scheduler.timesteps]
    positions = [place for place, t in enumerate(timesteps) if t == int(timestep) and place >= step]
    if not positions:
        raise ArgumentError(
            f"guidance: step {step} at timestep {int(timestep)} is none of the timesteps of {type(scheduler).__name__}"
        )
    counted = len(timesteps) - count + step if count else positions[0]
    position = counted if counted in positions else positions[0]
    if position + 1 == len(timesteps):
        return None, 1.0
    following = scheduler.timesteps[position + 1]
    return following, float(alphas_cumprod[int(following)])


def _noise(scheduler: Any, model_output: Any, latents: Any, abar: float) -> Any:
    """The noise in latents, from the output of a denoiser of any prediction type."""
    prediction_type = scheduler.config.prediction_type
    if prediction_type == "epsilon":
        return model_output
    if prediction_type == "v_prediction":  # v = sqrt(abar) eps - sqrt(1 - abar) x0 (Salimans & Ho 2022)
        return abar**0.5 * model_output + (1 - abar) ** 0.5 * latents
    if prediction_type == "sample":
        return (latents - abar**0.5 * model_output) / (1 - abar) ** 0.5
    raise ArgumentError(f"guidance: prediction type {prediction_type!r}; expected epsilon, v_prediction or sample")


def decode(pipe: Any, latents: torch.Tensor, dtype: Any = None) -> torch.Tensor:
    """Latents → pictures float32 [B,3,H,W] in [0,1], differentiable; the decoder runs in `dtype` (None: its own)."""
    config = pipe.vae.config
    latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
    pictures = pipe.vae.decode(latents.to(dtype or pipe.vae.dtype)).sample
    return (pictures.float() / 2 + 0.5).clamp(0, 1)


def inpainter(pipe: Any, **options: Any) -> Callable[[np.ndarray, np.ndarray, str, int], np.ndarray]:
    """A stock inpainting pipeline as `generate` of `rahf.steer.repair`.

    Args:
      pipe: e.g. `StableDiffusionInpaintPipeline`; any whose call takes `image` and `mask_image`.
      options: of its call: num_inference_steps, guidance_scale, negative_prompt, strength, …

    Returns:
      Function of (image uint8 [h,w,3], mask bool [h,w] with True = repaint, prompt, seed) → uint8 [h,w,3].

    Raises:
      ArgumentError: the pipeline does not inpaint, or works on no latent grid.
    """
    torch = _torch()
    if not {"image", "mask_image"} <= inspect.signature(type(pipe).__call__).parameters.keys():
        raise ArgumentError(
            f"inpainting: {type(pipe).__name__} takes no `image` and `mask_image`; use an inpainting pipeline, such as "
            "StableDiffusionInpaintPipeline"
        )
    if getattr(pipe, "vae_scale_factor", None) is None:
        raise ArgumentError(
            f"inpainting: {type(pipe).__name__} has no `vae`, whose grid of latents the picture must fit; use a latent "
            "diffusion pipeline"
        )

    def generate(image: np.ndarray, mask: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        height, width = image.shape[:2]
        factor = pipe.vae_scale_factor
        # The latent grid needs sides that are multiples of a cell; the result is resized to the picture's own size.
        rounded = (max(1, round(height / factor)) * factor, max(1, round(width / factor)) * factor)
        output = pipe(
            prompt=prompt,
            image=Image.fromarray(image),
            mask_image=Image.fromarray(mask.astype(np.uint8) * 255),
            height=rounded[0],
            width=rounded[1],
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="pil",
            **options,
        ).images[0]
        return np.asarray(output.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))

    return generate


def inpaint_best_of(
    pipe: Any,
    critic: Critic,
    image: Any,
    prompt: str,
    n: int = 4,
    *,
    pipe_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> Repair:
    """Repaints what the critic marks, `n` times, and returns the best of these and the original.

    Args:
      pipe: a stock inpainting pipeline.
      critic: of `rahf.load`; with heatmaps.
      image: path, encoded bytes, Pillow image, or array [h,w,3] (uint8, or float in [0,1]).
      prompt: of the picture.
      n: number of repaintings.
      pipe_options: of the pipeline's call.
      options: of `rahf.steer.repair`: which heatmap, which score, mask options, first seed, …

    Returns:
      The result; its picture is never scored worse than the original.
    """
    # Imported here: it needs SciPy and jaxtyping, which are not installed where only exported files are read.
    from rahf.steer.repaint import repair

    return repair(inpainter(pipe, **(pipe_options or {})), image, prompt, n, critic=critic, **options)
