"""A critic as reward of a model that writes prompts, in the shape that TRL's trainers call (GRPO, RLOO).

    reward = prompt_reward(critic, lambda prompts: pipe(list(prompts), output_type="pt").images)
    trainer = GRPOTrainer(model="...", reward_funcs=reward, train_dataset=wishes)   # a column "prompt"

TRL 0.24 removed its trainers of diffusion models (`DDPOTrainer`, `AlignPropTrainer`). Its reward functions get keyword
arguments: `prompts`, `completions`, `completion_ids`, the other columns of the dataset, and in 1.9 `trainer_state`,
`log_extra` and `log_metric`, too. They return one float per completion. For code of the shape of the removed trainers
see `rahf.interop.torch.policy_reward` and `differentiable_reward`.

This module does not import `trl`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rahf.core.errors import ArgumentError
from rahf.critic.critic import Critic
from rahf.interop.torch import for_critic


def prompt_reward(
    critic: Critic,
    generate: Callable[[list[str]], Any],
    score: str | Mapping[str, float] = "overall",
    *,
    wish: str = "prompts",
) -> Callable[..., list[float]]:
    """The reward of written prompts: a picture is made of each, and scored by what was wished for.

    Args:
      critic: of `rahf.load`.
      generate: text-to-image: prompts → as many pictures: a PyTorch tensor [B,3,H,W], a NumPy array [B,H,W,3], or
        anything else that the critic takes.
      score: a name of `rahf.core.batch.SCORES`, or weights by name.
      wish: the keyword argument with what the pictures shall show: TRL's own prompts, or a column of the dataset.

    Returns:
      Function of (completions, prompts, further columns) → list of B floats, high = good. Completions and prompts are
      texts, or conversations, of which the last message counts.

    Raises:
      NotPredicted: the critic does not predict the score, or one of those with a weight.
      ValueError: an unknown score; suggests the nearest. The function: a column that is missing, or another number of
        pictures than prompts.
    """
    critic.outputs.check_score(score)

    def reward(completions: Sequence[Any], prompts: Sequence[Any] = (), **columns: Any) -> list[float]:
        wishes = {"prompts": prompts, **columns}.get(wish)
        if not isinstance(wishes, Sequence) or len(wishes) != len(completions):
            count = len(wishes) if isinstance(wishes, Sequence) else "no such column"
            listed = ["prompts", *(name for name, column in columns.items() if isinstance(column, Sequence))]
            raise ArgumentError(
                f"wish: expected one text in the column {wish!r} for each of {len(completions)} completions, found "
                f"{count}; columns: {', '.join(listed)}"
            )
        pictures = for_critic(generate([_text(completion) for completion in completions]))
        return [float(value) for value in critic.score(pictures, [_text(one) for one in wishes], score)]

    reward.__name__ = f"rahf_{score}" if isinstance(score, str) else "rahf_scores"  # TRL logs it by this name
    return reward


def _text(message: Any) -> str:
    """The text of a completion or prompt: itself, or that of the last message of a conversation."""
    if isinstance(message, str):
        return message
    content = message[-1]["content"] if isinstance(message, Sequence) and message else message
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):  # parts: {"type": "text", "text": …}
        return " ".join(part["text"] for part in content if part.get("type") == "text")
    raise ArgumentError(f"expected a text or a conversation, found {type(message).__name__}")
