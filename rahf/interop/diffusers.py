"""A critic inside stock `diffusers` pipelines: guidance as a step callback, and inpainting that keeps the best of N.

    guidance = Guidance(critic, "a red cat", score="overall", scale=0.1)
    pipe("a red cat", callback_on_step_end=guidance, callback_on_step_end_tensor_inputs=guidance.tensor_inputs)

    repaired = inpaint_best_of(inpaint_pipe, critic, picture, "a red cat", n=4)

Nothing of `diffusers` is imported; the pipelines are the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from rahf.critic.critic import Critic
from rahf.interop.torch import _torch, as_torch

if TYPE_CHECKING:
    import torch


class Guidance:
    """Steers the latents of a running pipeline towards higher scores (universal guidance, Bansal et al. 2023).

    After a step of the scheduler, the picture that the latents lead to is predicted,
    ``x0 = (z - sqrt(1 - abar) · eps) / sqrt(abar)``, decoded and scored. The latents move against the gradient g of
    the energy ``1 - score``, normalised per sample to the norm of eps:
    ``z ← z - scale · sqrt(1 - abar) · |eps| / |g| · g``. The noise prediction counts as constant unless
    `through_denoiser` is set, which costs a backward pass of the denoiser.

    Attributes:
      tensor_inputs: for the pipeline's `callback_on_step_end_tensor_inputs`.
      energies: list, one float array [B] per guided or last step, of before that step's move.
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
          prompts: of the pipeline's pictures: one for all, or one per picture.
          score: to be raised: a name of `rahf.core.batch.SCORES`, or weights by name.
          scale: step size; spec: start with 0.05 to 0.5.
          window: share of signal `abar` between which latents are moved; earlier, the predicted picture is unlike
            anything that the critic was trained on.
          repeats: moves per step of the scheduler.
          through_denoiser: follow the gradient through the noise prediction, too.

        Raises:
          ValueError: an unknown score (suggests the nearest), or numbers that make no sense.
        """
        if not (np.isfinite(scale) and scale >= 0) or repeats < 1 or not 0 <= window[0] < window[1] <= 1:
            raise ValueError(
                f"guidance: expected scale >= 0, repeats >= 1 and 0 <= window[0] < window[1] <= 1, found {scale}, "
                f"{repeats} and {window}"
            )
        self.reward, self.prompts = as_torch(critic, score), prompts
        self.scale, self.window, self.repeats, self.through_denoiser = scale, window, repeats, through_denoiser
        self.energies: list[np.ndarray] = []

    def __call__(self, pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        """The callback: moves `latents`, whose type and device stay what they are.

        Raises:
          ValueError: the pipeline's scheduler or its tensors are not those of a latent diffusion model with a
            variance-preserving scheduler (DDIM, DDPM, PNDM, DPM-Solver, …); says what is missing.
        """
        torch = _torch()
        if step == 0:
            self.energies = []
        after, signal = _after(pipe.scheduler, step)
        if not (self.window[0] <= signal <= self.window[1]):
            return {}
        if not {"latents", "prompt_embeds"} <= tensors.keys():
            raise ValueError("guidance: pass callback_on_step_end_tensor_inputs=guidance.tensor_inputs to the pipeline")
        latents, embeds = tensors["latents"], tensors["prompt_embeds"]
        moved = latents.float()
        with torch.enable_grad():  # pipelines run without
            for _ in range(1 if after is None else self.repeats):
                moved = self._move(pipe, moved, latents.dtype, after, signal, embeds[-len(latents) :])
        return {"latents": moved.to(latents.dtype)}

    def _move(self, pipe: Any, latents: Any, dtype: Any, after: Any, signal: float, embeds: Any) -> Any:
        torch = _torch()
        z = latents.detach().requires_grad_()
        noise = torch.zeros_like(z)
        if after is not None:
            with torch.set_grad_enabled(self.through_denoiser):
                said = pipe.unet(z.to(dtype), after, encoder_hidden_states=embeds).sample.float()
            noise = _noise(pipe.scheduler, said, z, signal)
        clean = (z - (1 - signal) ** 0.5 * noise) / signal**0.5
        energy = 1 - self.reward(decode(pipe, clean, dtype), self.prompts)
        self.energies.append(energy.detach().cpu().numpy())
        if after is None or self.scale == 0:
            return z.detach()
        (gradient,) = torch.autograd.grad(energy.sum(), z)
        size = gradient.flatten(1).norm(dim=1)
        strength = self.scale * (1 - signal) ** 0.5 * noise.detach().flatten(1).norm(dim=1) / size
        # A sample without a usable gradient stays where it is; the others go on.
        usable = torch.isfinite(gradient).flatten(1).all(1) & torch.isfinite(strength) & (size > 0)
        direction = torch.where(usable[:, None, None, None], gradient, 0.0)
        return z.detach() - torch.where(usable, strength, 0.0)[:, None, None, None] * direction


def _after(scheduler: Any, step: int) -> tuple[Any, float]:
    """Time of the latents after a step, and the share of signal in them; (None, 1) after the last one."""
    signals = getattr(scheduler, "alphas_cumprod", None)
    if signals is None or float(scheduler.init_noise_sigma) != 1.0:
        raise ValueError(
            f"guidance: {type(scheduler).__name__} does not keep the variance of latents (no alphas_cumprod, or its "
            "own scaling); use DDIMScheduler, DDPMScheduler, PNDMScheduler or DPMSolverMultistepScheduler"
        )
    if step + 1 >= len(scheduler.timesteps):
        return None, 1.0
    after = scheduler.timesteps[step + 1]
    return after, float(signals[int(after)])


def _noise(scheduler: Any, said: Any, latents: Any, signal: float) -> Any:
    """The noise in latents, from what the denoiser said, whatever it was trained to say."""
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return said
    if kind == "v_prediction":  # v = sqrt(abar) eps - sqrt(1 - abar) x0 (Salimans & Ho 2022)
        return signal**0.5 * said + (1 - signal) ** 0.5 * latents
    if kind == "sample":
        return (latents - signal**0.5 * said) / (1 - signal) ** 0.5
    raise ValueError(f"guidance: prediction type {kind!r}; expected epsilon, v_prediction or sample")


def decode(pipe: Any, latents: torch.Tensor, dtype: Any = None) -> torch.Tensor:
    """Latents → pictures float32 [B,3,H,W] in [0,1], differentiable; the decoder runs in `dtype` (None: its own)."""
    config = pipe.vae.config
    latents = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
    pictures = pipe.vae.decode(latents.to(dtype or pipe.vae.dtype)).sample
    return (pictures.float() / 2 + 0.5).clamp(0, 1)


def inpainter(pipe: Any, **options: Any) -> Callable[[np.ndarray, np.ndarray, str, int], np.ndarray]:
    """A stock inpainting pipeline as `generate` of `rahf.steer.repair.repair`.

    Args:
      pipe: e.g. `StableDiffusionInpaintPipeline`.
      options: of its call: steps, guidance scale, strength, …

    Returns:
      Function of (image uint8 [h,w,3], mask bool [h,w] with True = repaint, prompt, seed) → uint8 [h,w,3].
    """
    torch = _torch()

    def generate(image: np.ndarray, mask: np.ndarray, prompt: str, seed: int) -> np.ndarray:
        height, width = image.shape[:2]
        factor = pipe.vae_scale_factor
        # Latents come in whole cells; the picture is put back to its own size afterwards.
        inner = (max(1, round(height / factor)) * factor, max(1, round(width / factor)) * factor)
        made = pipe(
            prompt=prompt,
            image=Image.fromarray(image),
            mask_image=Image.fromarray(mask.astype(np.uint8) * 255),
            height=inner[0],
            width=inner[1],
            generator=torch.Generator("cpu").manual_seed(seed),
            output_type="pil",
            **options,
        ).images[0]
        return np.asarray(made.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))

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
) -> Any:
    """Repaints what the critic marks, `n` times, and returns the best of these and the original.

    Args:
      pipe: a stock inpainting pipeline.
      critic: of `rahf.load`; with heatmaps.
      image: path, encoded bytes, Pillow image, or array [h,w,3] (uint8, or float in [0,1]).
      prompt: of the picture.
      n: how many repaintings.
      pipe_options: of the pipeline's call.
      options: of `rahf.steer.repair.repair`: which heatmap, which score, mask options, first seed, …

    Returns:
      `rahf.steer.repair.Repair`; never scored worse than the original.
    """
    from rahf.steer.repair import repair

    return repair(inpainter(pipe, **(pipe_options or {})), image, prompt, n, critic=critic, **options)
