"""Stable Diffusion, ready for use: prompts and seeds in, pictures out; from noise, from a picture, inside a mask.

    pipe = rahf.diffusion.load("models/sd15")
    pictures = pipe(["a red cat"], num_inference_steps=30, seeds=[0]).images

Each step is one call of one compiled program, whose arguments are all that may change: seeds, prompts, scale, and the
numbers of the scheduler's step. So only another size or batch compiles anew.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rahf.config import Config, SchedulerConfig, StableDiffusionConfig
from rahf.core.errors import ArgumentError, CheckpointError, NotFinite
from rahf.diffusion import controlnet as controlnet_lib
from rahf.diffusion import pipeline_inputs as inputs
from rahf.diffusion import pipeline_programs as programs
from rahf.diffusion import saved as saved_lib
from rahf.diffusion import schedulers
from rahf.diffusion.generated import GeneratedImages
from rahf.diffusion.networks.stable_diffusion import (
    Conditions,
    StableDiffusion,
    is_inpainting,
    latent_channels,
    vae_scale_factor,
)
from rahf.diffusion.pipeline_inputs import Task
from rahf.diffusion.pipeline_programs import Known
from rahf.diffusion.sample import universal_guidance
from rahf.diffusion.sample.options import GuidanceOptions
from rahf.nn import energy as energy_lib
from rahf.nn import functional
from rahf.text import ClipTokenizer
from rahf.text.vocabulary import too_many_pieces

#: Called after each step with the numbers of steps that are done and of all steps.
Progress = Callable[[int, int], None]


class Plan(NamedTuple):
    """How pictures are drawn."""

    steps: int
    eta: float
    guidance_scale: float
    start: int  # number of the first step that is taken
    calls: int  # of the network for a batch, without guidance by an energy: one per step, of PNDM one more
    energy: energy_lib.Energy | None
    options: GuidanceOptions
    paste_back: bool
    control_scales: np.ndarray | None = None  # float32 [steps], of a ControlNet

    @property
    def classifier_free(self) -> bool:
        """Whether the negative prompt counts: not at scale 1, which costs half."""
        return self.guidance_scale != 1.0


class Pipeline:
    """Networks with their parameters and vocabulary.

    Attributes:
      config, params, tokenizer: of the model.
      scheduler: that sampling follows; another one may be set, e.g.
        ``dataclasses.replace(pipe.scheduler, kind="euler")``.
      controlnet: that `control_image` is read by; None: none. May be set.
    """

    def __init__(
        self,
        config: Config,
        params: functional.Params,
        tokenizer: ClipTokenizer,
        controlnet: controlnet_lib.ControlNet | None = None,
    ):
        """Raises CheckpointError: a ControlNet for another base; names the first misfit."""
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self._tokenizers = [tokenizer.with_special(number) for number in config.model.pad_token_ids]
        self.scheduler: SchedulerConfig = config.model.scheduler
        self.graphdef, _ = functional.abstract(lambda: StableDiffusion(config.model))
        self.scale_factor, self.channels = vae_scale_factor(config.model), latent_channels(config.model)
        self.inpaints = is_inpainting(config.model)
        width = max(config.model.unet.block_out_channels)  # an autoencoder's are as wide or narrower
        self._programs = functools.cache(functools.partial(programs.program, self.graphdef, width))
        self.compiled: dict[Any, Any] = {}  # functions that others compile for this pipeline
        self.controlnet = controlnet

    @property
    def controlnet(self) -> controlnet_lib.ControlNet | None:
        """The ControlNet; setting one for another base raises CheckpointError."""
        return self._controlnet

    @controlnet.setter
    def controlnet(self, controlnet: controlnet_lib.ControlNet | None) -> None:
        if controlnet is not None:
            controlnet_lib.check_base(controlnet, self.config.model)
            controlnet = dataclasses.replace(controlnet, params=jax.device_put(controlnet.params))
        self._controlnet = controlnet

    def __call__(
        self,
        prompts: str | Sequence[str],
        *,
        negative_prompt: str | Sequence[str] | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        height: int | None = None,
        width: int | None = None,
        seeds: int | Sequence[int] = 0,
        latents: Any = None,
        image: Any = None,
        mask_image: Any = None,
        control_image: Any = None,
        controlnet_conditioning_scale: float | Sequence[float] = 1.0,
        control_guidance_start: float = 0.0,
        control_guidance_end: float = 1.0,
        strength: float | None = None,
        eta: float = 0.0,
        energy: universal_guidance.EnergyFunction | None = None,
        reward: universal_guidance.EnergyFunction | None = None,
        options: GuidanceOptions = GuidanceOptions(),
        paste_back: bool = True,
        batch_size: int = 4,
        progress: Progress | None = None,
    ) -> GeneratedImages:
        """Draws one picture per prompt and seed. Prompt and seed alone decide about a picture, whatever the batch.

        Args:
          prompts: one for all seeds, or one per picture; may be empty: unconditional.
          negative_prompt: what classifier-free guidance leads away from; None: the empty prompt (XL: none at all).
          num_inference_steps: of the scheduler.
          guidance_scale: of classifier-free guidance; 1: the prompt alone, in half the time.
          height, width: in pixels; multiples of 8. None: the image's, else the model's.
          seeds: one for all prompts, or one per picture.
          latents: noise float32 [B,h,w,4] of unit variance instead of the seeds'; the scheduler scales it.
          image: float32 [B,H,W,3] in [0,1], or uint8: to start from, or with a mask to repaint.
          mask_image: float [B,H,W] in [0,1], 1: repaint. Networks of inpainting read it; with all others the known part
            is laid over the latents at every step.
          control_image: what `controlnet` reads: float32 [B,H,W,3] in [0,1], or maps [B,H,W], or uint8; brought to
            the picture's size. None: the ControlNet takes no part.
          controlnet_conditioning_scale: how strongly it steers: a number, or one per step.
          control_guidance_start, control_guidance_end: shares of the steps from which on and until which it acts.
          strength: share of the steps that an image goes through; None: 0.8, with a mask 1.
          eta: noise of DDIM, 0 to 1.
          energy: of pictures in [0,1], to be lowered; see `rahf.nn.energy`.
          reward: instead of an energy: a function of pictures [B,H,W,3] in [0,1] → [B], to be raised; or a critic's,
            as in ``critic.reward("overall")``, of these prompts.
          options: of guidance; see `rahf.diffusion.GuidanceOptions`. Guided steps are those of DDIM (or DDPM).
          paste_back: pixels outside of the mask are exactly those of `image`; False: as decoded.
          batch_size: most pictures that are drawn at once.
          progress: called after each step.

        Returns:
          `images` float32 [B,H,W,3] in [0,1], with an energy also `energy` and `trace`.

        Raises:
          ArgumentError: numbers, shapes or sizes that do not fit.
          ImageError: pixels outside of [0,1].
          NotFinite: latents become NaN or infinite; names the picture and the step.

        Warns:
          rahf.text.PromptWarning: a prompt is longer than 77 tokens; names the words that are cut off.
        """
        task = self.task(prompts, negative_prompt, seeds, latents, image, mask_image, (height, width), control_image)
        if self.inpaints and mask_image is None:
            raise ArgumentError("this is a model of inpainting: give image and mask_image")
        plan = self._plan(task, num_inference_steps, eta, guidance_scale, strength, paste_back)
        plan = plan._replace(energy=_energy(energy, reward, prompts, len(task.seeds)), options=self._options(options))
        if task.hint is not None:
            interval = control_guidance_start, control_guidance_end
            plan = plan._replace(
                control_scales=controlnet_lib.scales(controlnet_conditioning_scale, plan.steps, *interval)
            )
        if batch_size < 1:
            raise ArgumentError(f"batch_size: expected at least 1, found {batch_size}")
        count = len(task.seeds)
        size = min(batch_size, count) if plan.energy is None else count  # an energy's arrays are of all pictures
        parts, total = [], -(-count // size) * plan.calls
        for first in range(0, count, size):
            done = first // size * plan.calls
            report = None if progress is None else (lambda step, done=done: progress(done + step, total))
            parts.append(self._batch(task.rows(first, size), plan, first, report))
        images = np.concatenate([np.asarray(part.images) for part in parts])[:count]
        return GeneratedImages(images, parts[0].energy, parts[0].trace)

    def encode(self, pictures: Any) -> jax.Array:
        """Pictures float32 [B,H,W,3] in [0,1] → scaled latents [B,h,w,4], their mean."""
        return self._programs("encode")(self.params, inputs.pictures("pictures", pictures))

    def decode(self, latents: Any) -> jax.Array:
        """Scaled latents [B,h,w,4] → pictures float32 [B,H,W,3] in [0,1]."""
        return self._programs("decode")(self.params, jnp.asarray(latents))

    def tokens(self, prompts: str | Sequence[str]) -> tuple[np.ndarray, ...]:
        """Prompts → int32 [B,77] for each text tower. Warns of prompts that are too long."""
        model: StableDiffusionConfig = self.config.model
        length = model.text_encoder.positions
        return inputs.tokens(inputs.texts("prompts", prompts), self._tokenizers, length, model.pad_token_ids)

    def conditions(
        self, ids: Sequence[Any], negative_ids: Sequence[Any] | None, size: tuple[int, int], params: Any = None
    ) -> tuple[Conditions, Conditions]:
        """What the U-Net reads of prompts and of negative prompts (None: zeros), for pictures of a size in pixels."""
        program = self._programs("prompts", tuple(size))
        return program(self.params if params is None else params, tuple(ids), negative_ids)

    def task(
        self,
        prompts: Any,
        negative_prompt: Any = None,
        seeds: Any = 0,
        latents: Any = None,
        image: Any = None,
        mask_image: Any = None,
        size: tuple[int | None, int | None] = (None, None),
        control_image: Any = None,
    ) -> Task:
        """Arguments of a call, checked, with a row per picture. Raises ArgumentError as the call."""
        image = None if image is None else inputs.pictures("image", image)
        mask = None if mask_image is None else inputs.masks(mask_image, image)
        height, width = inputs.size(*size, image, self.config.model.image_size, self.scale_factor)
        shape = (height // self.scale_factor, width // self.scale_factor, self.channels)
        hint = inputs.hints(control_image, self.controlnet, (height, width))
        seeds = np.atleast_1d(np.asarray(seeds))
        if seeds.ndim != 1 or seeds.dtype.kind not in "iu" or seeds.min() < 0 or seeds.max() >= 2**32:
            raise ArgumentError(f"seeds: expected whole numbers from 0 to 2**32 - 1, found {seeds}")
        negative = None if negative_prompt is None else inputs.texts("negative_prompt", negative_prompt)
        count, rows = inputs.per_picture(
            {
                "prompts": inputs.texts("prompts", prompts),
                "negative prompts": negative,
                "seeds": seeds.astype(np.uint32),
                "latents": None if latents is None else inputs.noise(latents, shape),
                "images": image,
                "masks": mask,
                "control images": hint,
            }
        )
        if negative is None and not self.config.model.force_zeros_for_empty_prompt:
            rows["negative prompts"] = [""] * count
        noise = rows["latents"]
        if noise is None:
            noise = np.asarray(programs.noise(rows["seeds"], shape))
        negative_ids = None if rows["negative prompts"] is None else self.tokens(rows["negative prompts"])
        others = rows["seeds"], rows["images"], rows["masks"], rows["control images"]
        return Task(self.tokens(rows["prompts"]), negative_ids, noise, *others)

    def _plan(self, task: Task, steps, eta, guidance_scale, strength, paste_back) -> Plan:
        if not (np.isscalar(guidance_scale) and np.isfinite(guidance_scale)):
            raise ArgumentError(f"guidance_scale: expected a number, found {guidance_scale!r}")
        if strength is None:
            strength = 0.8 if task.image is not None and task.mask is None else 1.0
        if not 0 < strength <= 1:
            raise ArgumentError(f"strength: expected a share of the steps, above 0 up to 1, found {strength}")
        if task.image is None and strength != 1:
            raise ArgumentError("strength: has a meaning together with image only")
        steps = int(steps)
        start = steps - min(max(int(steps * strength), 1), steps) if steps > 0 else 0
        calls = len(schedulers.steps(self.scheduler, steps, eta, start).timestep)  # refuses what makes no sense
        return Plan(steps, float(eta), float(guidance_scale), start, calls, None, GuidanceOptions(), paste_back)

    def _options(self, options: GuidanceOptions) -> GuidanceOptions:
        scheduler = self.scheduler
        if options.clean_range is None and scheduler.clip_sample:
            limit = scheduler.clip_sample_range
            return dataclasses.replace(options, clean_range=(-limit, limit))
        return options

    def _batch(self, task: Task, plan: Plan, first: int, report: Callable[[int], None] | None) -> GeneratedImages:
        size = tuple(side * self.scale_factor for side in task.noise.shape[1:3])
        conditions = self._programs("prompts", size)(self.params, task.ids, task.negative_ids)
        known = self._known(task)._replace(control=inputs.control(task, self.controlnet, self.config.model))
        if plan.energy is not None:
            generated = self._guided(task, plan, conditions, known)
        else:
            latents = self._sample(task, plan, conditions, known, first, report)
            generated = GeneratedImages(self.decode(latents))
        if task.mask is not None and plan.paste_back:
            images = jnp.where(task.mask[..., None] > 0, generated.images, task.image)
            generated = generated._replace(images=images)
        return generated

    def _known(self, task: Task) -> Known:
        """Latents of the picture to start from, and what a network of inpainting reads besides."""
        if task.image is None:
            return Known(None, None, None)
        latents = self.encode(task.image)
        if task.mask is None:
            return Known(latents, None, None)
        mask = inputs.latent_mask(task.mask, self.scale_factor)
        if not self.inpaints:
            return Known(latents, mask, None)
        # Masked pixels are grey, the middle of the range.
        masked = np.where(task.mask[..., None] > 0, np.float32(0.5), task.image)
        return Known(latents, mask, jnp.concatenate([jnp.asarray(mask), self.encode(masked)], -1))

    def _sample(self, task: Task, plan: Plan, conditions, known: Known, first: int, report) -> jax.Array:
        """Latents after the last step."""
        steps = schedulers.steps(self.scheduler, plan.steps, plan.eta, plan.start)
        rows = [steps.row(number) for number in range(len(steps.timestep))]
        noise = jnp.asarray(task.noise)
        latents = steps.init_noise_sigma * noise
        if known.starts(plan.start):
            latents = schedulers.add_noise(rows[0], known.latents, noise)
        clip = schedulers.clip_range(self.scheduler)
        history, bad = schedulers.no_history(steps, latents), []
        step = self._programs("step", self.scheduler.prediction_type, clip, plan.classifier_free, steps.stochastic)
        seeds, scale = jnp.asarray(task.seeds), jnp.float32(plan.guidance_scale)
        for number, row in enumerate(rows):
            following = rows[number + 1] if number + 1 < len(rows) else None
            # Where the step leads: the known part then has the noise of the next step, or none.
            level = programs.noise_level(following)
            if known.control is not None:
                scale_now = plan.control_scales[plan.start + schedulers.step_of_call(self.scheduler, number)]
                known = known._replace(control=dataclasses.replace(known.control, scale=scale_now))
            latents, history, finite = step(
                self.params, conditions, scale, row, level, latents, history, noise, seeds, np.int32(number), known
            )
            bad.append(finite)
            if report is not None:
                latents.block_until_ready()
                report(number + 1)
        _check_finite(np.asarray(jnp.stack(bad)), first, plan.start)
        return latents

    def _guided(self, task: Task, plan: Plan, conditions, known: Known) -> GeneratedImages:
        if known.control is not None:
            # Steps of a guided sampling are told by their timesteps.
            table = np.zeros(self.scheduler.num_train_timesteps, np.float32)
            timesteps = schedulers.guided(self.scheduler, plan.steps, plan.eta).timesteps
            table[np.asarray(timesteps)] = plan.control_scales
            known = known._replace(control=dataclasses.replace(known.control, scale=table))
        program = self._programs("guided", self.scheduler, plan.steps, plan.eta, plan.start, plan.classifier_free)
        generated, latents = program(
            self.params, conditions, task.noise, task.seeds, plan.guidance_scale, known, plan.energy, plan.options
        )
        _check_guided(np.asarray(latents), plan)
        return generated


def _check_finite(finite: np.ndarray, first: int, start: int) -> None:
    """Raises NotFinite for bool [steps,B] that has a False."""
    if not finite.all():
        step, picture = np.argwhere(~finite)[0]
        raise NotFinite(
            f"picture {first + int(picture)}: its latents are not finite (NaN or infinite) after step "
            f"{start + int(step) + 1}; the parameters or the given noise are damaged, or float16 numbers were too small"
        )


def _check_guided(latents: np.ndarray, plan: Plan) -> None:
    """Raises NotFinite, naming picture and energies, for latents [B,...] that are not finite."""
    finite = np.isfinite(latents).all((1, 2, 3))
    if not finite.all():
        names = ", ".join(term.name for term in plan.energy.terms)
        raise NotFinite(
            f"picture {int(np.flatnonzero(~finite)[0])}: its latents are not finite after {plan.steps} guided steps "
            f"(energies: {names}). Lower options.scale, or set options.max_norm"
        )


def _energy(energy: Any, reward: Any, prompts: Any, count: int) -> energy_lib.Energy | None:
    """The energy, or that of the reward; a critic's reward reads the prompts, one per picture."""
    critic = getattr(reward, "critic", None)
    if critic is not None and energy is None:
        listed = inputs.texts("prompts", prompts)
        listed = listed * count if len(listed) == 1 else listed
        return energy_lib.reward(reward, *critic.tokens(listed), critic.params)
    energy = universal_guidance.steering(energy, reward)
    return energy if energy is None or isinstance(energy, energy_lib.Energy) else energy_lib.function(energy)


def load(path: str | os.PathLike) -> Pipeline:
    """Loads a model directory of `rahf import stable-diffusion`, or a run that fine-tuned one.

    Raises:
      rahf.core.errors.CheckpointError: no model there, or one of another family.
    """
    saved = saved_lib.find(path)
    model = saved.config.model
    if not isinstance(model, StableDiffusionConfig):
        raise CheckpointError(
            f"{saved.run}: a model of the family {model.family!r}, no Stable Diffusion; use rahf.load"
        )
    params = saved.params(lambda: StableDiffusion(model))
    tokenizer = saved.tokenizer(
        lambda tokenizer: too_many_pieces(tokenizer, model.text_encoder.vocab_size, "text_encoder")
    )
    return Pipeline(saved.config, params, tokenizer)
