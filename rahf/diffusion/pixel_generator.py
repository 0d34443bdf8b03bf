"""The generator in pixels that earlier versions trained, ready for use: prompts and seeds in, pictures out.

Its runs are read; none is trained any more. `configs/diffusion/demo.py` trains its successor, a configuration of Stable
Diffusion (`rahf.diffusion.pipeline`).
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from rahf.config import Config, PixelDiffusionConfig
from rahf.core import pixel_range, process, renamed
from rahf.core.errors import ArgumentError, CheckpointError, ImageError, TrainError
from rahf.diffusion import saved as saved_lib
from rahf.diffusion import schedules
from rahf.diffusion.generated import GeneratedImages
from rahf.diffusion.networks import pixel_unet
from rahf.diffusion.sample import denoisers, universal_guidance
from rahf.diffusion.sample.options import GuidanceOptions
from rahf.nn import energy as energy_lib
from rahf.nn import functional
from rahf.text import Tokenizer
from rahf.text import prompts as prompts_lib
from rahf.text.vocabulary import too_many_pieces

#: With an energy that is 0 everywhere, steps recur and nothing is guided.
_ZERO = energy_lib.function(lambda pixels: jnp.zeros(len(pixels)), name="zero")

_RENAMED = dict(steps="num_inference_steps", prompt_scale="guidance_scale")


class Generator:
    """A denoiser with its parameters and vocabulary.

    Attributes:
      config, params, tokenizer: of the run.
      alphas_cumprod: float64 [T], ``abar`` of each timestep.
    """

    def __init__(self, config: Config, params: functional.Params, tokenizer: Tokenizer):
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.graphdef, _ = functional.abstract(lambda: pixel_unet.TextToImage(config.model))
        self.alphas_cumprod = pixel_unet.alphas_cumprod(config.model)
        self._sampler = functools.cache(self._compiled)

    def __reduce__(self) -> Any:
        raise TypeError(
            "a generator cannot be pickled: its functions are compiled for this process. Hand its path to the other "
            "process, and call rahf.load there"
        )

    def tokens(self, prompts: str | Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Prompts → `text_ids` int32 [B,L] and `text_mask` bool [B,L].

        Warns:
          rahf.text.PromptWarning: a prompt is too long; names the words lost.
        """
        texts = [prompts_lib.encode(one, self.config.data, self.tokenizer) for one in prompts_lib.prompt_list(prompts)]
        prompts_lib.warn(texts)
        return np.stack([text.text_ids for text in texts]), np.stack([text.text_mask for text in texts])

    def condition(
        self,
        text_ids: Any,
        text_mask: Any,
        params: functional.Params | None = None,
        negative: tuple[Any, Any] | None = None,
    ) -> tuple[pixel_unet.Prompt, pixel_unet.Prompt]:
        """Encodes prompts, once for all steps: the `cond` of `denoiser`, of the prompts and of negative ones.

        Args:
          text_ids, text_mask: of `tokens`.
          params: other parameters; None: its own.
          negative: (text_ids, text_mask) of negative prompts, of the same shapes; None: empty prompts.
        """
        model = functional.merge(self.graphdef, self.params if params is None else params)
        negative = (text_ids, jnp.zeros_like(text_mask)) if negative is None else negative
        return model.encode(text_ids, text_mask), model.encode(*negative)

    @renamed.arguments(prompt_scale="guidance_scale")
    def denoiser(self, params: functional.Params | None = None, guidance_scale: Any = 2.0) -> denoisers.Denoiser:
        """The network as `rahf.diffusion.sample.universal_guidance.sample` takes it: (z, t, cond of `condition`) → eps.

        Args:
          params: other parameters, e.g. as an argument of your own `jit`; None: its own.
          guidance_scale: of classifier-free guidance; 1: the prompt alone.
        """
        model = functional.merge(self.graphdef, self.params if params is None else params)
        network = denoisers.epsilon(model, self.alphas_cumprod, self.config.model.prediction_type)
        return denoisers.classifier_free(network, guidance_scale)

    @renamed.arguments(**_RENAMED)
    def __call__(
        self,
        prompts: str | Sequence[str],
        seeds: int | Sequence[int] = 0,
        num_inference_steps: int = 50,
        *,
        eta: float = 0.0,
        guidance_scale: float = 2.0,
        negative_prompt: str | Sequence[str] | None = None,
        energy: universal_guidance.EnergyFunction | None = None,
        reward: universal_guidance.EnergyFunction | None = None,
        options: GuidanceOptions = GuidanceOptions(),
    ) -> GeneratedImages:
        """Draws one picture per prompt and seed.

        Args:
          prompts: one for all seeds, or one per picture.
          seeds: one for all prompts, or one per picture; prompt and seed alone decide about a picture.
          num_inference_steps: of DDIM.
          eta: noise of the sampler, 0 to 1.
          guidance_scale: of classifier-free guidance.
          negative_prompt: what classifier-free guidance leads away from: one for all, or one per picture; None: the
            empty prompt.
          energy: of pictures in [0,1], to be lowered; e.g. `rahf.critic.energy.score(critic, prompts, "overall")`.
          reward: instead of an energy: a function of pictures [B,S,S,3] in [0,1] → [B], to be raised; or a critic's,
            as in `critic.reward("overall")`, of these prompts. See `rahf.nn.energy.reward`.
          options: of guidance; clean estimates are clamped to [-1,1] unless they say otherwise.

        Raises:
          ValueError: numbers of prompts and seeds that do not fit, an empty prompt, an energy and a reward.
        """
        text = _Text(prompts, negative_prompt)
        return self._generate(
            text, seeds, num_inference_steps, eta, guidance_scale, _steering(energy, reward, prompts), options
        )

    @renamed.arguments(**_RENAMED)
    def inpaint(
        self,
        images: Any,
        masks: Any,
        prompts: str | Sequence[str],
        seeds: int | Sequence[int] = 0,
        num_inference_steps: int = 50,
        *,
        eta: float = 1.0,
        guidance_scale: float = 2.0,
        negative_prompt: str | Sequence[str] | None = None,
        energy: universal_guidance.EnergyFunction | None = None,
        reward: universal_guidance.EnergyFunction | None = None,
        options: GuidanceOptions = GuidanceOptions(),
    ) -> GeneratedImages:
        """Repaints a part of pictures so that it goes with the rest and the prompt (RePaint, Lugmayr et al. 2022).

        At every step the known pixels, with the noise of the step, replace those that were painted over them.
        `rahf.steer.painter` turns it into the inpainting that `rahf.steer.repair` takes.

        Args:
          images: [B,S,S,3] at the network's side S, uint8 or float in [0,1]; or one, [S,S,3].
          masks: bool [B,S,S] or [S,S], True: repaint.
          prompts, seeds: as in calling; one, or one per picture. One image may be painted with many seeds.
          num_inference_steps, eta, guidance_scale, negative_prompt, energy, reward: as in calling. Fresh noise (`eta`
            1) lets the painted part settle with its surroundings.
          options: of guidance. `recurrences` happen without an energy, too: RePaint's resampling.

        Returns:
          The pictures; pixels outside of the mask are exactly those of `images`.

        Raises:
          ValueError: shapes or ranges other than these, numbers that do not fit, an empty prompt.
        """
        inpainted = self._inpainted(images, masks)
        energy = _steering(energy, reward, prompts)
        unguided = energy is None
        if unguided and options.recurrences > 1:  # the sampler repeats steps only where there is an energy
            energy = _ZERO
            options = dataclasses.replace(options, scale=0, backward_steps=0, through_denoiser=False)
        text = _Text(prompts, negative_prompt)
        generated = self._generate(text, seeds, num_inference_steps, eta, guidance_scale, energy, options, inpainted)
        return generated._replace(energy=None) if unguided else generated

    def _generate(self, text, seeds, steps, eta, guidance_scale, energy, options, inpainted=None) -> GeneratedImages:
        process.claim()
        tokens = self.tokens(text.prompts)
        negative = None if text.negative is None else self.tokens(text.negative)
        seeds = np.atleast_1d(np.asarray(seeds, np.uint32))
        rows = {"prompts": len(tokens[0]), "seeds": len(seeds)}
        rows |= {} if inpainted is None else {"images": len(inpainted[0])}
        rows |= {} if negative is None else {"negative prompts": len(negative[0])}
        count = max(rows.values())
        if not set(rows.values()) <= {1, count}:
            numbers = " but ".join(f"{number} {name}" for name, number in rows.items())
            raise ArgumentError(f"{numbers}: give one, or one per picture")
        per_picture = jax.tree.map(lambda x: np.repeat(x, count // len(x), 0), (tokens, negative, seeds, inpainted))
        if energy is not None and not isinstance(energy, energy_lib.Energy):
            energy = energy_lib.function(energy)
        if options.clean_range is None:
            options = dataclasses.replace(options, clean_range=(-1.0, 1.0))
        sample = self._sampler(int(steps), float(eta))
        return sample(self.params, *per_picture, guidance_scale, energy, options)

    def _inpainted(self, images: Any, masks: Any) -> tuple[np.ndarray, np.ndarray]:
        """Checked pictures float32 [B,S,S,3] in [0,1] and masks bool [B,S,S,1], equally many."""
        side, images, masks = self.config.model.image_size, np.asarray(images), np.asarray(masks)
        images, masks = (x[None] if x.ndim == n else x for x, n in ((images, 3), (masks, 2)))
        if images.shape[1:] != (side, side, 3) or masks.shape[1:] != (side, side) or masks.dtype != bool:
            raise ArgumentError(
                f"images of shape {images.shape} and masks of shape {masks.shape} ({masks.dtype}): expected "
                f"[B,{side},{side},3] and bool [B,{side},{side}], the size that this generator paints"
            )
        count = max(len(images), len(masks))
        if not {len(images), len(masks)} <= {1, count}:
            raise ArgumentError(f"{len(images)} images but {len(masks)} masks: give one, or one per picture")
        if images.dtype != np.uint8 and "float" not in str(images.dtype):
            raise ImageError(f"images of type {images.dtype}; {pixel_range.EXPECTED_TYPES}")
        pictures = images.astype(np.float32) / (255.0 if images.dtype == np.uint8 else 1.0)
        pixel_range.check("images", float(pictures.min(initial=0)), float(pictures.max(initial=0)))
        return tuple(np.repeat(x, count // len(x), 0) for x in (np.clip(pictures, 0, 1), masks[..., None]))

    def _compiled(self, steps: int, eta: float):
        schedule = schedules.ddim(self.alphas_cumprod, steps, eta)
        side = self.config.model.image_size

        @jax.jit
        def sample(params, tokens, negative, seeds, inpainted, guidance_scale, energy, options):
            keys = jax.vmap(jax.random.key)(seeds)
            denoiser = self.denoiser(params, guidance_scale)
            if inpainted is not None:
                denoiser = denoisers.inpainting(denoiser, self.alphas_cumprod, 2.0 * inpainted[0] - 1.0, inpainted[1])
            sampled = universal_guidance.sample(
                denoiser,
                schedule,
                universal_guidance.noise(keys, len(seeds), (side, side, 3)),
                self.condition(*tokens, params, negative),
                energy=energy,
                decode=universal_guidance.unit_pixels,
                options=options,
                key=keys,
            )
            images = universal_guidance.unit_pixels(sampled.sample)
            if inpainted is not None:
                images = jnp.where(inpainted[1], images, inpainted[0])
            return GeneratedImages(images, sampled.energy, sampled.trace)

        return sample


class _Text(NamedTuple):
    """Prompts and negative prompts, as given."""

    prompts: str | Sequence[str]
    negative: str | Sequence[str] | None


def _steering(energy: Any, reward: Any, prompts: str | Sequence[str]) -> universal_guidance.EnergyFunction | None:
    """The energy, or that of the reward; a critic's reward reads the prompts."""
    critic = getattr(reward, "critic", None)
    if critic is None or energy is not None:
        return universal_guidance.steering(energy, reward)
    return energy_lib.reward(reward, *critic.tokens(prompts), critic.params)


def no_task(config: Config) -> NoReturn:
    """Refuses to train. Raises TrainError."""
    raise TrainError(
        f"model.family {config.model.family!r}: rahf reads such models of earlier versions and trains none; "
        "configs/diffusion/demo.py trains its successor, a configuration of the family 'stable-diffusion'"
    )


def load(path: str | os.PathLike) -> Generator:
    """Loads a run directory of the family "pixel-diffusion", or one checkpoint of it.

    Raises:
      rahf.core.errors.CheckpointError: no model there, or one that is no diffusion model.
    """
    process.claim()
    saved = saved_lib.find(path)
    config = saved.config
    if not isinstance(config.model, PixelDiffusionConfig):
        raise CheckpointError(
            f"{saved.run}: a {config.model.family}, no diffusion model in pixels; load it with rahf.load"
        )
    params = saved.params(lambda: pixel_unet.TextToImage(config.model))
    tokenizer = saved.tokenizer(lambda tokenizer: too_many_pieces(tokenizer, config.model.t5.vocab_size, "t5"))
    return Generator(config, params, tokenizer)
