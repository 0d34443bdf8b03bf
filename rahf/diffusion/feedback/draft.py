"""Direct reward fine-tuning: the gradient of a reward of the drawn pictures, back through the last steps of sampling.

    def objective(adapters):
        params = trainable.merged(pipe.params, {"scale": scale, "adapters": adapters})
        return draft.loss(chain, params, conditions, keys, shape, rewards, DraftConfig(k=1))

    (value, judged), gradient = jax.value_and_grad(objective, has_aux=True)(adapters)

Three rules say through which steps the gradient runs: DRaFT-K (Clark et al. 2024), AlignProp (Prabhudesai et al. 2023)
and ReFL (Xu et al. 2023); see `rahf.config.DraftConfig`. Each tracked step keeps its latents only and is computed again
for the gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from rahf.config import DraftConfig
from rahf.core.errors import ArgumentError
from rahf.diffusion.feedback import rewards as rewards_lib
from rahf.diffusion.feedback.chain import Base, Chain, Row, State
from rahf.diffusion.feedback.rewards import Reward


class Judged(NamedTuple):
    """The pictures of a loss.

    Attributes:
      images: float32 [B,H,W,3] in [0,1]; ReFL: of the clean estimate.
      reward: float32 [B], of all rewards.
      parts: each reward by its name, float32 [B].
      pull: float32 [B], mean squared difference of the predicted noise to the base model's, over the tracked steps; 0
        without one.
    """

    images: Array
    reward: Array
    parts: dict[str, Array]
    pull: Array


def check(options: DraftConfig, chain: Chain) -> None:
    """Refuses options that do not fit the number of steps. Raises ArgumentError, naming the field."""
    low, high = options.stop_range
    if options.rule == "refl":
        if not 0 <= low <= high < chain.length:
            raise ArgumentError(
                f"draft.stop_range: expected two of the steps 0 to {chain.length - 1}, ascending, found {low}, {high}"
            )
    elif not 1 <= options.k <= chain.length:
        raise ArgumentError(f"draft.k: expected 1 to the number of steps, {chain.length}, found {options.k}")


def loss(
    chain: Chain,
    params: Any,
    conditions: Any,
    keys: Key[Array, " b"],
    shape: tuple[int, int, int],
    rewards: Sequence[Reward],
    options: DraftConfig,
    key: Key[Array, ""] | None = None,
    base: Base | None = None,
    pull_weight: Any = 0.0,
) -> tuple[Float[Array, ""], Judged]:
    """The loss of one batch of pictures, differentiable in `params` and `conditions`.

    Args:
      chain: the steps.
      params: of all networks, adapters merged. What they are differentiated by decides what learns; the autoencoder's
        are constants.
      conditions: of prompts and negative prompts (`Pipeline.conditions`); computed from `params`, they teach the text
        towers, too.
      keys: of each picture's noise.
      shape: of the latents of a picture, [h,w,c].
      rewards: of the pictures.
      options: of the gradient.
      key: of the drawn step of "alignprop" and "refl".
      base: pull towards this model; None: none.
      pull_weight: factor of the mean of `Judged.pull` in the loss.

    Returns:
      ``loss_scale`` times the mean of the negative reward, or of ``relu(margin - reward)``, and the pull; and what it
      was computed from.

    Raises:
      ArgumentError: options that do not fit the steps; a rule that draws without a key.
    """
    check(options, chain)
    if options.rule != "draft" and key is None:
        raise ArgumentError(f"key: the rule {options.rule!r} draws a step; give jax.random.key(seed)")
    track = _Tracked(chain, params, conditions, keys, base)
    state = chain.start(keys, shape)
    if options.rule == "refl":
        latents, pull = track.estimated(state, jax.random.randint(key, (), *_half_open(options.stop_range)))
    else:
        number = options.k if options.rule == "draft" else jax.random.randint(key, (), 1, options.k + 1)
        latents, pull = track.sampled(state, options.k, number)
    images = chain.decode(params, latents)
    reward, parts = rewards_lib.total(rewards, images)
    value = -reward if not options.margin else jax.nn.relu(options.margin - reward)
    return options.loss_scale * value.mean() + pull_weight * pull.mean(), Judged(images, reward, parts, pull)


def _half_open(both: tuple[int, int]) -> tuple[int, int]:
    return both[0], both[1] + 1


class _Tracked:
    """A sampling whose last steps carry the gradient."""

    def __init__(self, chain: Chain, params: Any, conditions: Any, keys: Array, base: Base | None):
        self._chain, self._keys, self._base = chain, keys, jax.lax.stop_gradient(base)
        self._tracked = params, conditions
        self._frozen = jax.lax.stop_gradient((params, conditions))

    def plain(self, state: State, row: Row) -> State:
        return self._chain.step(*self._frozen, row, state, self._keys)

    def estimate(self, latents: Array, row: Row) -> tuple[Array, Array, Array]:
        """Clean estimate, noise and pull, with their gradient; computed again for it."""

        def estimate(params, conditions, latents):
            x0, eps = self._chain.estimate(params, conditions, row, latents)
            if self._base is None:
                return x0, eps, jnp.zeros(len(eps))
            _, other = self._chain.estimate(*self._base, row, jax.lax.stop_gradient(latents))
            return x0, eps, jnp.square(eps - other).mean((1, 2, 3))

        return jax.checkpoint(estimate, prevent_cse=False)(*self._tracked, latents)

    def sampled(self, state: State, most: int, number: Any) -> tuple[Array, Array]:
        """Final latents and the mean pull; of the last `most` steps the last `number` are tracked."""
        chain, first = self._chain, self._chain.length - number
        state, _ = jax.lax.scan(
            lambda state, row: (self.plain(state, row), None), state, chain.part(0, chain.length - most)
        )

        def tracked(state: State, row: Row) -> tuple[State, Array]:
            x0, eps, pull = self.estimate(state.latents, row)
            return chain.advance(row, state, x0, eps, self._keys), pull

        def plain(state: State, row: Row) -> tuple[State, Array]:
            return jax.lax.stop_gradient(self.plain(state, row)), jnp.zeros(len(state.latents))

        def body(state: State, row: Row) -> tuple[State, Array]:
            if isinstance(number, int):
                return tracked(state, row)
            return jax.lax.cond(row.number >= first, tracked, plain, state, row)

        state, pulls = jax.lax.scan(body, jax.lax.stop_gradient(state), chain.part(chain.length - most, chain.length))
        return state.latents, pulls.sum(0) / number

    def estimated(self, state: State, number: Array) -> tuple[Array, Array]:
        """The clean estimate of a step, which alone is tracked, and its pull."""
        chain = self._chain
        state = jax.lax.stop_gradient(state)
        state = jax.lax.fori_loop(0, number, lambda step, state: self.plain(state, chain.row(step)), state)
        x0, _, pull = self.estimate(jax.lax.stop_gradient(state.latents), chain.row(number))
        return x0, pull
