"""A trained diffusion model, ready for use: prompts and seeds in, pictures out, guided if asked for."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rahf.config import Config, PixelDiffusionConfig
from rahf.core.errors import CheckpointError
from rahf.diffusion import schedules
from rahf.diffusion.networks import pixel_unet
from rahf.diffusion.sample import denoisers, universal_guidance
from rahf.diffusion.sample import energy as energy_lib
from rahf.diffusion.sample.options import GuidanceOptions
from rahf.nn import functional
from rahf.text import Tokenizer
from rahf.text import prompts as prompts_lib
from rahf.text.vocabulary import too_many_pieces
from rahf.training import saved_model

#: What the denoisers call the prediction types.
_V0_NAMES = {"v_prediction": "v", "epsilon": "eps", "sample": "x0"}

#: An energy that nothing can lower: with it, steps recur and nothing is guided.
_NOTHING = energy_lib.function(lambda pixels: jnp.zeros(len(pixels)), name="nothing")


class Made(NamedTuple):
    """What a generator made: `images` float32 [B,S,S,3] in [0,1], and how (`energy` [B] or None, `trace`)."""

    images: jax.Array
    energy: jax.Array | None
    trace: universal_guidance.Trace

    @property
    def uint8(self) -> np.ndarray:
        """The images as uint8 [B,S,S,3]."""
        return np.asarray(jnp.round(self.images * 255)).astype(np.uint8)


class Generator:
    """A denoiser with its parameters and vocabulary.

    Attributes:
      config, params, tokenizer: of the run.
      signals: float64 [T], ``abar`` of each time.
    """

    def __init__(self, config: Config, params: functional.Params, tokenizer: Tokenizer):
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.graphdef, _ = functional.abstract(lambda: pixel_unet.TextToImage(config.model))
        self.signals = pixel_unet.signals(config.model)
        self._sample = functools.cache(self._compiled)

    def tokens(self, prompts: str | Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Prompts → `text_ids` int32 [B,L] and `text_mask` bool [B,L].

        Warns:
          rahf.images.inputs.PromptWarning: a prompt is too long; names the words lost.
        """
        texts = [prompts_lib.encode(one, self.config.data, self.tokenizer) for one in prompts_lib.prompt_list(prompts)]
        prompts_lib.warn(texts)
        return np.stack([text.text_ids for text in texts]), np.stack([text.text_mask for text in texts])

    def condition(
        self, text_ids: Any, text_mask: Any, params: functional.Params | None = None
    ) -> tuple[pixel_unet.Prompt, pixel_unet.Prompt]:
        """Reads prompts, once for all steps: what the `denoiser` takes as cond, of the prompts and of empty
        ones."""
        model = functional.merge(self.graphdef, self.params if params is None else params)
        return model.encode(text_ids, text_mask), model.encode(text_ids, jnp.zeros_like(text_mask))

    def denoiser(self, params: functional.Params | None = None, prompt_scale: Any = 2.0) -> denoisers.Denoiser:
        """The network as what `rahf.diffusion.sample.universal_guidance.sample` takes: (z, t, cond of `condition`) → eps.

        Args:
          params: other parameters, e.g. as an argument of your own `jit`; None: its own.
          prompt_scale: of classifier-free guidance; 1: the prompt alone.
        """
        model = functional.merge(self.graphdef, self.params if params is None else params)
        network = denoisers.epsilon(model, self.signals, _V0_NAMES[self.config.model.prediction_type])
        return denoisers.classifier_free(network, prompt_scale)

    def __call__(
        self,
        prompts: str | Sequence[str],
        seeds: int | Sequence[int] = 0,
        steps: int = 50,
        *,
        eta: float = 0.0,
        prompt_scale: float = 2.0,
        energy: universal_guidance.EnergyFunction | None = None,
        options: GuidanceOptions = GuidanceOptions(),
    ) -> Made:
        """Makes one picture per prompt and seed.

        Args:
          prompts: one for all seeds, or one per picture.
          seeds: one for all prompts, or one per picture; prompt and seed alone decide about a picture.
          steps: of DDIM.
          eta: noise of the sampler, 0 to 1.
          prompt_scale: of classifier-free guidance.
          energy: what to lower, of pictures in [0,1]; e.g. `rahf.critic.energy.score(critic, prompts,
            "overall")`.
          options: of guidance; clean estimates are clamped to [-1,1] unless they say otherwise.

        Raises:
          ValueError: numbers of prompts and seeds that do not fit, an empty prompt.
        """
        return self._made(prompts, seeds, steps, eta, prompt_scale, energy, options)

    def inpaint(
        self,
        images: Any,
        masks: Any,
        prompts: str | Sequence[str],
        seeds: int | Sequence[int] = 0,
        steps: int = 50,
        *,
        eta: float = 1.0,
        prompt_scale: float = 2.0,
        energy: universal_guidance.EnergyFunction | None = None,
        options: GuidanceOptions = GuidanceOptions(),
    ) -> Made:
        """Repaints a part of pictures so that it goes with the rest and the prompt (RePaint, Lugmayr et al. 2022).

        The known pixels, with the noise of the step, take the place of what was painted at every step.
        For `rahf.steer.repair.repair` see `rahf.steer.painter`.

        Args:
          images: [B,S,S,3] at the network's side S, uint8 or float in [0,1]; or one, [S,S,3].
          masks: bool [B,S,S] or [S,S], True: repaint.
          prompts, seeds: as in calling; one, or one per picture. One image may be painted with many seeds.
          steps, eta, prompt_scale, energy: as in calling. Fresh noise (`eta` 1) lets what is painted settle
            with its surroundings.
          options: of guidance. `recurrences` are made without an energy, too: RePaint's resampling.

        Returns:
          The pictures; pixels outside of the mask are exactly those given.

        Raises:
          ValueError: shapes or ranges other than these, numbers that do not fit, an empty prompt.
        """
        known = self._known(images, masks)
        unguided = energy is None
        if unguided and options.recurrences > 1:  # steps recur where there is an energy
            energy = _NOTHING
            options = dataclasses.replace(options, scale=0, backward_steps=0, through_denoiser=False)
        made = self._made(prompts, seeds, steps, eta, prompt_scale, energy, options, known)
        return made._replace(energy=None) if unguided else made

    def _made(self, prompts, seeds, steps, eta, prompt_scale, energy, options, known=None) -> Made:
        ids, mask = self.tokens(prompts)
        seeds = np.atleast_1d(np.asarray(seeds, np.uint32))
        rows = {"prompts": len(ids), "seeds": len(seeds)} | ({} if known is None else {"images": len(known[0])})
        count = max(rows.values())
        if not set(rows.values()) <= {1, count}:
            found = " but ".join(f"{number} {name}" for name, number in rows.items())
            raise ValueError(f"{found}: give one, or one per picture")
        ids, mask, seeds, known = jax.tree.map(lambda x: np.repeat(x, count // len(x), 0), (ids, mask, seeds, known))
        if energy is not None and not isinstance(energy, energy_lib.Energy):
            energy = energy_lib.function(energy)
        if options.clean_range is None:
            options = dataclasses.replace(options, clean_range=(-1.0, 1.0))
        sample = self._sample(int(steps), float(eta))
        return sample(self.params, ids, mask, seeds, prompt_scale, energy, options, known)

    def _known(self, images: Any, masks: Any) -> tuple[np.ndarray, np.ndarray]:
        """Pictures float32 [B,S,S,3] in [0,1], and bool [B,S,S,1], as many of each."""
        side, images, masks = self.config.model.image_size, np.asarray(images), np.asarray(masks)
        images, masks = (x[None] if x.ndim == n else x for x, n in ((images, 3), (masks, 2)))
        if images.shape[1:] != (side, side, 3) or masks.shape[1:] != (side, side) or masks.dtype != bool:
            raise ValueError(
                f"images of shape {images.shape} and masks of shape {masks.shape} ({masks.dtype}): expected "
                f"[B,{side},{side},3] and bool [B,{side},{side}], the size that this generator paints"
            )
        count = max(len(images), len(masks))
        if not {len(images), len(masks)} <= {1, count}:
            raise ValueError(f"{len(images)} images but {len(masks)} masks: give one, or one per picture")
        pictures = images.astype(np.float32) / (255.0 if images.dtype == np.uint8 else 1.0)
        low, high = float(pictures.min(initial=0)), float(pictures.max(initial=0))
        if not (low >= -1e-3 and high <= 1 + 1e-3):
            raise ValueError(f"images: expected uint8 or floats in 0..1, found {images.dtype} from {low:g} to {high:g}")
        return tuple(np.repeat(x, count // len(x), 0) for x in (np.clip(pictures, 0, 1), masks[..., None]))

    def _compiled(self, steps: int, eta: float):
        schedule = schedules.ddim(self.signals, steps, eta)
        side = self.config.model.image_size

        @jax.jit
        def sample(params, ids, mask, seeds, prompt_scale, energy, options, known):
            keys = jax.vmap(jax.random.key)(seeds)
            denoiser = self.denoiser(params, prompt_scale)
            if known is not None:
                denoiser = denoisers.inpainting(denoiser, self.signals, 2.0 * known[0] - 1.0, known[1])
            found = universal_guidance.sample(
                denoiser,
                schedule,
                universal_guidance.noise(keys, len(seeds), (side, side, 3)),
                self.condition(ids, mask, params),
                energy=energy,
                decode=universal_guidance.unit_pixels,
                options=options,
                key=keys,
            )
            images = universal_guidance.unit_pixels(found.sample)
            if known is not None:
                images = jnp.where(known[1], images, known[0])
            return Made(images, found.energy, found.trace)

        return sample


def load(path: str | os.PathLike) -> Generator:
    """Loads a run directory of `rahf train configs/diffusion/demo.py`, or one checkpoint of it.

    Raises:
      rahf.training.checkpoint.CheckpointError: no model there, or one that is no diffusion model.
    """
    saved = saved_model.find(path)
    config = saved.config
    if not isinstance(config.model, PixelDiffusionConfig):
        raise CheckpointError(f"{saved.run}: a critic, no diffusion model; load it with rahf.load")
    params = saved.params(lambda: pixel_unet.TextToImage(config.model))
    tokenizer = saved.tokenizer(lambda tokenizer: too_many_pieces(tokenizer, config.model.t5.vocab_size, "t5"))
    return Generator(config, params, tokenizer)
