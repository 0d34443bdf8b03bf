"""Sampling as a function of the parameters, step by step: what learning from feedback differentiates.

    chain = Chain(pipe.graphdef, pipe.scheduler, num_inference_steps=20)
    final, _ = jax.lax.scan(lambda state, row: (chain.step(params, conditions, row, state, keys), None),
                            chain.start(keys, shape), chain.rows)

Steps are those of the pipeline: the same seeds lead to the same pictures.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Key

from rahf.config import SchedulerConfig
from rahf.core.errors import ArgumentError
from rahf.diffusion import schedulers
from rahf.diffusion.networks.stable_diffusion import Conditions
from rahf.nn import functional


class State(NamedTuple):
    """Latents before a step, float32 [B,h,w,c], and what the K steps before have kept, [K,B,h,w,c]."""

    latents: Any
    history: Any


class Row(NamedTuple):
    """One step, or with a leading axis all of them: its number, int32, and its factors."""

    number: Any
    factors: schedulers.Steps


class Base(NamedTuple):
    """The model before fine-tuning: its parameters, and the conditions that its text towers give."""

    params: Any
    conditions: Any


class Chain:
    """The steps of one sampler.

    Attributes:
      rows: all steps, NumPy arrays [N].
      length: N, of PNDM one more than the steps that were asked for.
    """

    def __init__(
        self,
        graphdef: nnx.GraphDef,
        scheduler: SchedulerConfig,
        num_inference_steps: int,
        guidance_scale: float = 7.5,
        eta: float = 0.0,
    ):
        """Builds the table of steps.

        Args:
          graphdef: of a `StableDiffusion`.
          scheduler: that sampling follows.
          num_inference_steps: N.
          guidance_scale: of classifier-free guidance; 1: the prompt alone, in half the time.
          eta: noise of DDIM, 0 to 1.

        Raises:
          ArgumentError: numbers that make no sense; names them.
        """
        if not np.isfinite(guidance_scale):
            raise ArgumentError(f"guidance_scale: expected a number, found {guidance_scale!r}")
        steps = schedulers.steps(scheduler, num_inference_steps, eta)
        self.graphdef, self.scheduler, self.guidance_scale = graphdef, scheduler, float(guidance_scale)
        self.stochastic, self.length = steps.stochastic, len(steps.timestep)
        self._sigma, self._clip = steps.init_noise_sigma, schedulers.clip_range(scheduler)
        columns = steps._replace(init_noise_sigma=np.full(self.length, self._sigma, np.float32))
        self.rows = Row(np.arange(self.length, dtype=np.int32), columns)

    def part(self, start: int, stop: int) -> Row:
        """The steps from `start` up to before `stop`."""
        return jax.tree.map(lambda column: column[start:stop], self.rows)

    def row(self, number: Any) -> Row:
        """One step; its number may be traced."""
        return jax.tree.map(lambda column: jnp.asarray(column)[number], self.rows)

    def start(self, keys: Key[Array, " b"], shape: tuple[int, int, int]) -> State:
        """Noise to begin with, of latents [h,w,c] of each key; that of a seed is ``jax.random.key(seed)``."""
        latents = self._sigma * noise(keys, shape, 0)
        return State(latents, schedulers.no_history(self.rows.factors, latents))

    def estimate(
        self, params: Any, conditions: tuple[Conditions, Conditions], row: Row, latents: Float[Array, "b h w c"]
    ) -> tuple[Array, Array]:
        """Clean estimate and predicted noise before a step, float32 [B,h,w,c].

        Args:
          params: of all networks.
          conditions: of the prompts and of the negative prompts.
          row: one step.
        """
        model = functional.merge(self.graphdef, params)
        scaled = row.factors.input_scale * latents
        if self.guidance_scale == 1:
            output = model(scaled, jnp.broadcast_to(row.factors.timestep, len(scaled)), conditions[0])
        else:
            twice = jnp.concatenate([scaled, scaled])
            both = jax.tree.map(lambda *parts: jnp.concatenate(parts), *conditions)
            times = jnp.broadcast_to(row.factors.timestep, len(twice))
            prompt, negative = jnp.split(model(twice, times, both), 2)
            output = negative + self.guidance_scale * (prompt - negative)
        return schedulers.convert(row.factors, self.scheduler.prediction_type, self._clip, latents, output)

    def step(self, params: Any, conditions: Any, row: Row, state: State, keys: Key[Array, " b"]) -> State:
        """The state after a step; arguments as of `estimate`."""
        return self.advance(row, state, *self.estimate(params, conditions, row, state.latents), keys)

    def advance(self, row: Row, state: State, x0: Array, eps: Array, keys: Key[Array, " b"]) -> State:
        """The state after a step with what `estimate` gave."""
        fresh = noise(keys, state.latents.shape[1:], 1 + row.number) if self.stochastic else None
        return State(*schedulers.advance(row.factors, state.latents, x0, eps, state.history, fresh))

    def draw(self, params: Any, conditions: Any, keys: Key[Array, " b"], shape: tuple[int, int, int]) -> Array:
        """Pictures of all steps, float32 [B,H,W,3] in [0,1]; arguments as of `estimate` and `start`."""
        body = lambda state, row: (self.step(params, conditions, row, state, keys), None)  # noqa: E731
        return self.decode(params, jax.lax.scan(body, self.start(keys, shape), self.rows)[0].latents)

    def decode(self, params: Any, latents: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 3"]:
        """Pictures float32 [B,H,W,3] in [0,1]; the gradient reaches the latents, never the autoencoder."""
        frozen = jax.lax.stop_gradient(params)
        decode = jax.checkpoint(lambda latents: functional.merge(self.graphdef, frozen).decode(latents))
        return decode(latents)


def noise(keys: Key[Array, " b"], shape: tuple[int, ...], number: Any) -> Float[Array, "b ..."]:
    """Standard normal noise [B,*shape] of each key; number 0 is what sampling starts from, n + 1 that of step n."""
    return jax.vmap(lambda key: jax.random.normal(jax.random.fold_in(key, number), shape))(keys)
