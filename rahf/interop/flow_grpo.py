"""A critic as reward of `flow_grpo`, which trains flow-matching generators (SD3, FLUX) by policy gradient.

    import flow_grpo.rewards
    from rahf.interop.flow_grpo import multi_score

    flow_grpo.rewards.multi_score = multi_score(rahf.load("lite"), others=flow_grpo.rewards.multi_score)
    # and in its config: config.reward_fn = {"rahf_overall": 1.0, "pickscore": 0.5}

Its training scripts call ``multi_score(device, weights)`` once, and the function that it returns with pictures, prompts
and metadata, from threads. Pictures are a PyTorch tensor [B,3,H,W] in [0,1], or a NumPy array uint8 [B,H,W,3].

This module does not import `flow_grpo`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from rahf.core.batch import SCORES
from rahf.core.errors import ArgumentError
from rahf.critic.critic import Critic
from rahf.interop import torch as torch_lib

#: Names of a critic's scores in `config.reward_fn`.
PREFIX = "rahf_"
_TOTAL = "avg"  # key of the weighted sum, which the trainer maximises

Rewards = tuple[dict[str, list[float]], dict]


def score_function(critic: Critic, score: str | Mapping[str, float] = "overall") -> Callable[..., Any]:
    """One score, in the shape of the functions that `flow_grpo.rewards.multi_score` adds up.

    Args:
      critic: of `rahf.load`.
      score: a name of `rahf.core.batch.SCORES`, or weights by name.

    Returns:
      Function of (images, prompts, metadata) → (list of B floats, high = good, {}). Images are a PyTorch tensor
      [B,3,H,W], on any device, floats in [0,1] or uint8; a NumPy array [B,H,W,3] of these types; or Pillow images. They
      are rounded to 8 bits, as saved pictures are, so that all of these forms give the same scores.

    Raises:
      NotPredicted: the critic does not predict the score, or one of those with a weight.
      ValueError: an unknown score; suggests the nearest.
    """
    critic.outputs.check_score(score)

    def reward(images: Any, prompts: Sequence[str], metadata: Any = None) -> tuple[list[float], dict]:
        scores = critic.score(torch_lib.for_critic(images), list(prompts), score, progress=False)
        return [float(value) for value in scores], {}

    return reward


def multi_score(critic: Critic, others: Callable[..., Any] | None = None) -> Callable[..., Callable[..., Rewards]]:
    """A function to put in the place of `flow_grpo.rewards.multi_score`.

    Args:
      critic: of `rahf.load`.
      others: what it replaces, for the rewards that are none of rahf's.

    Returns:
      Function of (device, weights by name) → reward function. Names are ``rahf_`` and a score's name, such as
      ``rahf_overall``, or those of `others`. The reward function takes (images, prompts, metadata, ref_images,
      only_strict), the last two of which only `others` reads, and returns ({each name, and ``avg``, the weighted sum:
      list of B floats}, {}).

      Raises ArgumentError for a name that is no score of rahf where there are no `others`; NotPredicted for a score
      that the critic does not predict.
    """

    def factory(device: Any, score_dict: Mapping[str, float]) -> Callable[..., Rewards]:
        names = [name for name in score_dict if name.startswith(PREFIX)]
        functions = {name: score_function(critic, name.removeprefix(PREFIX)) for name in names}
        foreign = {name: weight for name, weight in score_dict.items() if name not in functions}
        if foreign and others is None or not score_dict:
            own = ", ".join(PREFIX + score for score in SCORES)
            raise ArgumentError(
                f"config.reward_fn: expected weights of {own}; found {', '.join(foreign) or 'none'}. For other rewards "
                "give their function as others: multi_score(critic, others=flow_grpo.rewards.multi_score)"
            )
        foreign_function = others(device, foreign) if foreign else None

        def reward(images: Any, prompts: Sequence[str], metadata: Any, *arguments: Any, **options: Any) -> Rewards:
            details: dict[str, Any] = {}
            total = np.zeros(len(images))
            if foreign_function is not None:
                details, _ = foreign_function(images, prompts, metadata, *arguments, **options)
                total += np.asarray([float(value) for value in details[_TOTAL]])
            for name, function in functions.items():
                details[name], _ = function(images, prompts, metadata)
                total += score_dict[name] * np.asarray(details[name])
            return {**details, _TOTAL: total.tolist()}, {}

        return reward

    return factory
