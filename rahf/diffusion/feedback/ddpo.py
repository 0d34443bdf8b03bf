"""Policy gradient of sampling (DDPO, Black et al. 2024): each stochastic step is an action with a Gaussian density.

    trajectory = ddpo.sample(chain, params, conditions, keys, shape)
    advantages = ddpo.advantages(rewards, prompt_numbers, DdpoConfig())
    loss, measured = ddpo.loss(chain, params, conditions, trajectory, advantages, DdpoConfig())

The advantage of a picture may be spread over the places of its latents by a heatmap, so that a step is blamed where the
picture is bad (`place_advantages`). No gradient runs through the reward, which may be any function.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from rahf.config import DdpoConfig
from rahf.core.errors import ArgumentError
from rahf.diffusion import schedulers
from rahf.diffusion.feedback.chain import Base, Chain, Row, State

_LEAST_DEVIATION = 1e-8  # added to what advantages are divided by


class Trajectory(NamedTuple):
    """What was sampled, N steps of B pictures.

    Attributes:
      latents: float32 [N+1,B,h,w,c], before each step and at the end.
      log_probs: float32 [N,B,h,w], of each step, summed over the channels of a place; 0 where a step draws no noise.
    """

    latents: Array
    log_probs: Array


class Measured(NamedTuple):
    """Of a loss, means over the steps that draw noise and over pictures; float32 scalars.

    Attributes:
      ratio: of the densities now and when sampled.
      clipped: share of the ratios outside of the clip range.
      kl: half the mean squared difference of the log-densities, an estimate of the divergence from the sampling policy.
      pull: divergence of a step's density from the base model's, per value of the latents; 0 without one.
    """

    ratio: Array
    clipped: Array
    kl: Array
    pull: Array


def check(options: DdpoConfig) -> None:
    """Refuses options that make no sense. Raises ArgumentError, naming the field."""
    if not 0 < options.clip_range < 1:
        raise ArgumentError(f"ddpo.clip_range: expected above 0 and below 1, found {options.clip_range}")
    if not options.advantage_max > 0:
        raise ArgumentError(f"ddpo.advantage_max: expected above 0, found {options.advantage_max}")
    if not 0 <= options.place_share <= 1:
        raise ArgumentError(f"ddpo.place_share: expected 0 to 1, found {options.place_share}")
    if options.updates < 1:
        raise ArgumentError(f"ddpo.updates: expected at least 1, found {options.updates}")
    if options.least_of_prompt < 2:
        raise ArgumentError(f"ddpo.least_of_prompt: expected at least 2, found {options.least_of_prompt}")


def check_chain(chain: Chain) -> None:
    """Refuses steps without noise, and those that depend on the step before. Raises ArgumentError."""
    if not chain.stochastic or chain.scheduler.kind not in ("ddim", "ddpm"):
        raise ArgumentError(
            f"scheduler: a policy gradient takes steps that draw noise: ddim with eta above 0, or ddpm; found "
            f"{chain.scheduler.kind}{'' if chain.stochastic else ' without noise'}"
        )


def log_prob(
    after: Float[Array, "b h w c"], mean: Float[Array, "b h w c"], std_dev: Float[Array, ""]
) -> Float[Array, "b h w"]:
    """Log-density of latents under a normal distribution, summed over the channels of each place.

    A standard deviation of 0 (a step that draws no noise) gives 0, with gradient 0.
    """
    positive = std_dev > 0
    safe = jnp.where(positive, std_dev, 1.0)
    values = -0.5 * jnp.square((after - mean) / safe) - jnp.log(safe) - 0.5 * math.log(2 * math.pi)
    return jnp.where(positive, values.sum(-1), 0.0)


def sample(
    chain: Chain, params: Any, conditions: Any, keys: Key[Array, " b"], shape: tuple[int, int, int]
) -> Trajectory:
    """Draws pictures and keeps their way; no gradient. The last latents are `Chain.decode`'s.

    Args:
      chain: of DDIM with eta above 0, or DDPM.
      params, conditions, keys, shape: as of `rahf.diffusion.feedback.draft.loss`.

    Raises:
      ArgumentError: steps that draw no noise, or that depend on the step before (other schedulers).
    """
    check_chain(chain)
    params, conditions = jax.lax.stop_gradient((params, conditions))
    start = chain.start(keys, shape)

    def body(state: State, row: Row) -> tuple[State, tuple[Array, Array]]:
        x0, eps = chain.estimate(params, conditions, row, state.latents)
        after = chain.advance(row, state, x0, eps, keys)
        mean, _ = schedulers.advance(row.factors, state.latents, x0, eps, state.history)
        return after, (after.latents, log_prob(after.latents, mean, row.factors.of_noise))

    _, (latents, log_probs) = jax.lax.scan(body, start, chain.rows)
    return Trajectory(jnp.concatenate([start.latents[None], latents]), log_probs)


def advantages(rewards: Float[Array, " b"], prompts: Int[Array, " b"], options: DdpoConfig) -> Float[Array, " b"]:
    """Rewards less the mean of their prompt, divided by its standard deviation, clamped to ± `advantage_max`.

    Args:
      prompts: which prompt a picture is of: equal numbers, 0 to B - 1, for equal prompts. Prompts with fewer than
        `least_of_prompt` pictures are compared with the whole batch.
    """
    rewards = jnp.asarray(rewards, jnp.float32)
    same = (prompts[:, None] == prompts[None]).astype(jnp.float32)
    enough = same.sum(1) >= options.least_of_prompt
    weights = jnp.where(enough[:, None], same, 1.0)
    weights = weights / weights.sum(1, keepdims=True)
    # Of differences between rewards, so that nearly equal ones, far from 0, lose nothing by rounding.
    differences = rewards[None] - rewards[:, None]
    mean = (weights * differences).sum(1)
    deviation = jnp.sqrt((weights * jnp.square(differences - mean[:, None])).sum(1))
    values = -mean / (deviation + _LEAST_DEVIATION)
    return jnp.clip(values, -options.advantage_max, options.advantage_max)


def place_advantages(
    advantages: Float[Array, " b"], heatmaps: Float[Array, "b y x"], size: tuple[int, int], share: float
) -> Float[Array, "b h w"]:
    """The advantage of each picture at each place of its latents; the mean over places is the picture's.

    A picture that is worse than others is blamed where its heatmap is high, in proportion; one that is better is
    praised where it is low, in proportion to ``max - heatmap``. A heatmap that is the same everywhere spreads evenly.

    Args:
      heatmaps: at least 0, high where a picture is bad (implausibility, misalignment), of any resolution.
      size: of the latents, (h, w).
      share: of the advantage that is spread by the heatmap; the rest is the same at all places.
    """
    maps = jax.image.resize(jnp.asarray(heatmaps, jnp.float32), (len(heatmaps), *size), "linear", antialias=True)
    maps = jnp.maximum(maps, 0.0)
    blame = _mean_one(maps)
    praise = _mean_one(maps.max((1, 2), keepdims=True) - maps)
    weights = jnp.where(advantages[:, None, None] < 0, blame, praise)
    return advantages[:, None, None] * (1 - share + share * weights)


def _mean_one(maps: Array) -> Array:
    mean = maps.mean((1, 2), keepdims=True)
    return jnp.where(mean > 0, maps / jnp.where(mean > 0, mean, 1.0), 1.0)


def loss(
    chain: Chain,
    params: Any,
    conditions: Any,
    trajectory: Trajectory,
    advantages: Float[Array, " b *places"],
    options: DdpoConfig,
    base: Base | None = None,
    pull_weight: Any = 0.0,
) -> tuple[Float[Array, ""], Measured]:
    """The clipped surrogate ``mean(max(-A r, -A clip(r, 1 ± clip_range)))`` over all steps that draw noise.

    The ratio r is that of the densities of a step now and when it was sampled, to the power of one over the number of
    values of a picture, or of a place: the exponent is the mean difference of log-densities, not their sum. So the
    published clip range holds at any resolution.

    Args:
      params, conditions: of now, differentiable; see `rahf.diffusion.feedback.draft.loss`.
      trajectory: of `sample`. With `log_probs` None the policy is the one that has sampled: ratios are exactly 1,
        which recomputed densities are only to rounding.
      advantages: [B], of pictures; or [B,h,w], of places (`place_advantages`), each of which then has its own ratio.
      base: pull towards this model: the loss has `pull_weight` times ``KL(step || step of the base)``, which for two
        normal distributions of one deviation is ``(mean - mean_base)² / (2 std_dev²)``, here per value of the latents.

    Raises:
      ArgumentError: options or steps that make no sense; advantages of another shape.
    """
    check(options)
    check_chain(chain)
    per_place = jnp.ndim(advantages) == 3
    places = trajectory.latents.shape[1:4]
    expected = places if per_place else places[:1]
    if jnp.shape(advantages) != expected:
        raise ArgumentError(f"advantages: expected one per picture or place, {places}, found {jnp.shape(advantages)}")
    channels = trajectory.latents.shape[-1]
    trajectory, advantages = jax.lax.stop_gradient((trajectory, jnp.asarray(advantages, jnp.float32)))

    base = jax.lax.stop_gradient(base)

    def of_step(params, conditions, before, after, row: Row) -> tuple[Array, Array]:
        """Log-densities [B,h,w], and the divergence from the base model."""
        mean = _mean(chain, params, conditions, row, before)
        values = log_prob(after, mean, row.factors.of_noise)
        if base is None:
            return values, jnp.zeros(())
        std_dev = jnp.where(row.factors.of_noise > 0, row.factors.of_noise, 1.0)
        return values, 0.5 * jnp.square((mean - _mean(chain, *base, row, before)) / std_dev).mean()

    of_step = jax.checkpoint(of_step, prevent_cse=False)

    def body(total, step):
        row, before, after, old = step
        log_probs, pull = of_step(params, conditions, before, after, row)
        change = (log_probs - (jax.lax.stop_gradient(log_probs) if old is None else old)) / channels
        change = change if per_place else change.mean((1, 2))
        ratio = jnp.exp(change)
        low, high = 1 - options.clip_range, 1 + options.clip_range
        value = jnp.maximum(-advantages * ratio, -advantages * jnp.clip(ratio, low, high)).mean()
        clipped = ((ratio < low) | (ratio > high)).astype(jnp.float32).mean()
        measured = jnp.stack([value, ratio.mean(), clipped, 0.5 * jnp.square(change).mean(), pull])
        return total + jnp.where(row.factors.of_noise > 0, measured, 0.0), None

    steps = (chain.rows, trajectory.latents[:-1], trajectory.latents[1:], trajectory.log_probs)
    total, _ = jax.lax.scan(body, jnp.zeros(5), steps)
    value, *measured = total / int((np.asarray(chain.rows.factors.of_noise) > 0).sum())
    measured = Measured(*measured)
    return value + pull_weight * measured.pull, measured


def _mean(chain: Chain, params: Any, conditions: Any, row: Row, before: Array) -> Array:
    """The mean of the latents after a step."""
    x0, eps = chain.estimate(params, conditions, row, before)
    return schedulers.advance(row.factors, before, x0, eps, schedulers.no_history(row.factors, before))[0]
