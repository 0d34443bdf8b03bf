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

from rahf import inputs
from rahf.config import Config
from rahf.diffusion import unet
from rahf.models import functional
from rahf.models import rahf as model_lib
from rahf.steer import denoisers, schedules, universal
from rahf.steer import energy as energy_lib
from rahf.steer.options import GuidanceOptions
from rahf.text import Tokenizer


class Made(NamedTuple):
    """What a generator made: `images` float32 [B,S,S,3] in [0,1], and how (`energy` [B] or None, `trace`)."""

    images: jax.Array
    energy: jax.Array | None
    trace: universal.Trace

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
        self.graphdef, _ = functional.abstract(model_lib.build(config.model))
        self.signals = unet.signals(config.model)
        self._sample = functools.cache(self._compiled)

    def tokens(self, prompts: str | Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Prompts → `text_ids` int32 [B,L] and `text_mask` bool [B,L].

        Warns:
          rahf.inputs.PromptWarning: a prompt is too long; names the words lost.
        """
        texts = [inputs.encode(one, self.config.data, self.tokenizer) for one in inputs.prompt_list(prompts)]
        inputs.warn(texts)
        return np.stack([text.text_ids for text in texts]), np.stack([text.text_mask for text in texts])

    def condition(
        self, text_ids: Any, text_mask: Any, params: functional.Params | None = None
    ) -> tuple[unet.Prompt, unet.Prompt]:
        """Reads prompts, once for all steps: what the `denoiser` takes as cond, of the prompts and of empty
        ones."""
        model = functional.merge(self.graphdef, self.params if params is None else params)
        return model.encode(text_ids, text_mask), model.encode(text_ids, jnp.zeros_like(text_mask))

    def denoiser(self, params: functional.Params | None = None, prompt_scale: Any = 2.0) -> denoisers.Denoiser:
        """The network as what `rahf.steer.universal.sample` takes: (z, t, cond of `condition`) → eps.

        Args:
          params: other parameters, e.g. as an argument of your own `jit`; None: its own.
          prompt_scale: of classifier-free guidance; 1: the prompt alone.
        """
        model = functional.merge(self.graphdef, self.params if params is None else params)
        network = denoisers.epsilon(model, self.signals, self.config.model.diffusion.predicts)
        return denoisers.classifier_free(network, prompt_scale)

    def __call__(
        self,
        prompts: str | Sequence[str],
        seeds: int | Sequence[int] = 0,
        steps: int = 50,
        *,
        eta: float = 0.0,
        prompt_scale: float = 2.0,
        energy: universal.EnergyFunction | None = None,
        options: GuidanceOptions = GuidanceOptions(),
    ) -> Made:
        """Makes one picture per prompt and seed.

        Args:
          prompts: one for all seeds, or one per picture.
          seeds: one for all prompts, or one per picture; prompt and seed alone decide about a picture.
          steps: of DDIM.
          eta: noise of the sampler, 0 to 1.
          prompt_scale: of classifier-free guidance.
          energy: what to lower, of pictures in [0,1]; e.g. `rahf.steer.energy.score(critic, prompts,
            "overall")`.
          options: of guidance; clean estimates are clamped to [-1,1] unless they say otherwise.

        Raises:
          ValueError: numbers of prompts and seeds that do not fit, an empty prompt.
        """
        ids, mask = self.tokens(prompts)
        seeds = np.atleast_1d(np.asarray(seeds, np.uint32))
        count = max(len(ids), len(seeds))
        if len(ids) not in (1, count) or len(seeds) not in (1, count):
            raise ValueError(f"{len(ids)} prompts but {len(seeds)} seeds: give one, or one per picture")
        ids, mask, seeds = (np.repeat(x, count // len(x), 0) for x in (ids, mask, seeds))
        if energy is not None and not isinstance(energy, energy_lib.Energy):
            energy = energy_lib.function(energy)
        if options.clean_range is None:
            options = dataclasses.replace(options, clean_range=(-1.0, 1.0))
        return self._sample(int(steps), float(eta))(self.params, ids, mask, seeds, prompt_scale, energy, options)

    def _compiled(self, steps: int, eta: float):
        schedule = schedules.ddim(self.signals, steps, eta)
        side = self.config.model.image_size

        @jax.jit
        def sample(params, ids, mask, seeds, prompt_scale, energy, options):
            keys = jax.vmap(jax.random.key)(seeds)
            found = universal.sample(
                self.denoiser(params, prompt_scale),
                schedule,
                universal.noise(keys, len(seeds), (side, side, 3)),
                self.condition(ids, mask, params),
                energy=energy,
                decode=universal.unit_pixels,
                options=options,
                key=keys,
            )
            return Made(universal.unit_pixels(found.sample), found.energy, found.trace)

        return sample


def load(path: str | os.PathLike) -> Generator:
    """Loads a run directory of `rahf train configs/demo_diffusion.py`, or one checkpoint of it.

    Raises:
      rahf.train.checkpoint.CheckpointError: no model there, or one that is no diffusion model.
    """
    from rahf import run_critic
    from rahf.train.checkpoint import CheckpointError

    config, params, tokenizer, run, _ = run_critic.parts(path)
    if config.model.kind != "diffusion":
        raise CheckpointError(f"{run}: a critic, no diffusion model; load it with rahf.load")
    return Generator(config, params, tokenizer)
