"""What a generator is rewarded for: functions of pixels, of a critic or one's own, weighted against each other."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rahf.core.errors import ArgumentError
from rahf.nn.energy import Energy


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Reward:
    """`function(pixels float32 [B,H,W,3] in [0,1], *arrays)` → float32 [B], higher is better.

    Attributes:
      arrays: what the function needs besides, such as tokens and parameters: arguments of compiled programs.
      function, name: static.
      weight: relative to the other rewards, above 0; static.
    """

    arrays: tuple[Any, ...]
    function: Callable[..., Array] = dataclasses.field(metadata=dict(static=True))
    name: str = dataclasses.field(metadata=dict(static=True))
    weight: float = dataclasses.field(default=1.0, metadata=dict(static=True))

    def __post_init__(self):
        """Raises ArgumentError for a weight that is no positive number."""
        if not (math.isfinite(self.weight) and self.weight > 0):
            raise ArgumentError(f"reward {self.name!r}: expected a weight above 0, found {self.weight}")

    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, " b"]:
        """The reward of each picture. Raises ArgumentError unless there is one number for each."""
        values = jnp.asarray(self.function(pixels, *self.arrays))
        if values.shape != pixels.shape[:1]:
            raise ArgumentError(
                f"reward {self.name!r}: expected one number per picture, shape {pixels.shape[:1]}, found {values.shape}"
            )
        return values.astype(jnp.float32)


def of_energy(energy: Energy, weight: float = 1.0, name: str | None = None) -> Reward:
    """The negative of an energy, which is to be lowered (`rahf.nn.energy`, `rahf.critic.energy`)."""
    return Reward((energy,), _negative, name or " + ".join(term.name for term in energy.terms), weight)


def of_reward(
    function: Callable[..., Array], prompts: Sequence[str] = (), weight: float = 1.0, name: str | None = None
) -> Reward:
    """A function of pixels [B,H,W,3] → [B]; or a critic's, as in ``critic.reward("overall")``, of these prompts.

    Args:
      prompts: one per picture, for a critic's reward.

    Raises:
      ArgumentError: a critic's reward without prompts.
    """
    critic = getattr(function, "critic", None)
    name = name or getattr(function, "__name__", type(function).__name__)
    if critic is None:
        return Reward((), function, name, weight)
    if not prompts:
        raise ArgumentError(f"reward {name!r}: a critic's reward reads the prompts; give one per picture")
    return Reward((*critic.tokens(list(prompts)), critic.params), function, name, weight)


def total(rewards: Sequence[Reward], pixels: Float[Array, "b h w 3"]) -> tuple[Array, dict[str, Array]]:
    """The weighted mean of rewards, weights divided by their sum, and each by its name without weight; float32 [B].

    Raises:
      ArgumentError: no rewards, or two of one name.
    """
    names = [reward.name for reward in rewards]
    if not names or len(set(names)) < len(names):
        raise ArgumentError(f"rewards: expected at least one, each with a name of its own; found {names}")
    parts = {reward.name: reward(pixels) for reward in rewards}
    weights = sum(reward.weight for reward in rewards)
    return sum(reward.weight / weights * parts[reward.name] for reward in rewards), parts


def _negative(pixels: Array, energy: Energy) -> Array:
    return -energy(pixels)
