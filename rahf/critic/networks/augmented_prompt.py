"""The augmented-prompt variant: one heatmap head and one score head; the prompt says which label is asked for.

RAHF (Liang et al., CVPR 2024), section 4.1: a task string is put in front of the prompt, and one (task, label)
pair is one training example. The ViT sees the image once, the fusion stack sees its tokens once per task. The target
sequence has no prefix, so its pass is that of the multi-head variant.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rahf.config import CriticConfig
from rahf.core.batch import HEATMAPS, SCORES, Batch
from rahf.core.errors import ConfigError
from rahf.critic import label_prompts
from rahf.critic.networks.multi_head import Rahf
from rahf.critic.networks.outputs import Fused
from rahf.nn import layers
from rahf.text import PAD_ID

#: First task and number of tasks of each kind of output, in the order of `rahf.critic.label_prompts.TASKS`.
_HEATMAPS, _SCORES, _SEQUENCE = (0, len(HEATMAPS)), (len(HEATMAPS), len(SCORES)), (label_prompts.COUNT - 1, 1)
#: The most examples that share a draw of tasks; see `draw_tasks`.
_LARGEST_STRATUM = 32


class FusionInputs(NamedTuple):
    """The inputs of the fusion stack that every task's pass shares."""

    image_tokens: Float[Array, "b n d"]
    text_ids: Int[Array, "b l"]
    text_mask: Bool[Array, "b l"]
    key: layers.Key


class Slots(NamedTuple):
    """The passes that go through one head: n places in each of S strata, m = S · n."""

    rows: Int[Array, "s n"]  # number of a pass in its stratum
    tasks: Int[Array, " m"]  # counted from the head's first task
    valid: Bool[Array, " m"]  # False: the place is empty


class TaskLogits(NamedTuple):
    """Raw outputs of the tasks drawn in a training step, float32, and the examples and tasks that they belong to."""

    heatmaps: Float[Array, "i s s"]
    scores: Float[Array, " j"]
    sequence: Float[Array, "k t v"]
    heatmap_slots: Slots
    score_slots: Slots
    sequence_slots: Slots
    passes: int  # per example; a task is drawn with probability passes / 7
    tags: Float[Array, "b v"] | None = None  # of all examples: the tag head reads no prompt

    def of_examples(self, values: Array, slots: Slots) -> Array:
        """The rows of a [B,…] array that belong to the slots' examples, [m,…]."""
        return pick(values, slots.rows // self.passes)


class AugmentedRahf(Rahf):
    """Image and prompt → the same outputs as `Rahf`, each by a pass with its own prefix."""

    HEATMAP_HEADS, SCORE_HEADS = ("head",), ("head",)

    def __init__(self, config: CriticConfig):
        super().__init__(config)
        if not 1 <= config.tasks_per_example <= label_prompts.COUNT:
            raise ConfigError(
                f"model.tasks_per_example {config.tasks_per_example}: expected 1 to {label_prompts.COUNT}, "
                "the number of tasks"
            )

    def fuse(
        self,
        image_tokens: Float[Array, "b n d"],
        text_ids: Int[Array, "b l"],
        text_mask: Bool[Array, "b l"],
        key: layers.Key = None,
    ) -> Fused:
        """The pass without prefix, for the decoder; it keeps its inputs for the passes of heatmaps and scores."""
        fused = super().fuse(image_tokens, text_ids, text_mask, layers.subkey(key, 0))
        return fused._replace(inputs=FusionInputs(image_tokens, text_ids, text_mask, layers.subkey(key, 1)))

    def heatmap_logits(self, fused: Fused, key: layers.Key = None) -> Float[Array, "b s s 2"]:
        """Logits of both heatmaps in order HEATMAPS, float32; two passes."""
        return jnp.moveaxis(self._ask(fused.inputs, _HEATMAPS, self.heatmap_head, key), 0, -1)

    def score_logits(self, fused: Fused, key: layers.Key = None) -> Float[Array, "b 4"]:
        """Logits of the four scores in order SCORES, float32; four passes."""
        return jnp.moveaxis(self._ask(fused.inputs, _SCORES, self.score_head, key), 0, -1)

    def _ask(self, inputs: FusionInputs, tasks: tuple[int, int], head: Callable, key: layers.Key) -> Array:
        """One pass and one output per task, stacked along a new first axis.

        A scan computes one task after the other: as fast as all tasks in one large batch (demo's network, batch 32,
        2 CPU cores), with a sixth of the memory and one compiled body.
        """
        first, count = tasks

        def ask(task):
            rows = jnp.broadcast_to(task, inputs.text_ids.shape[:1])
            ids, mask = prepend(self.config.task_ids, rows, inputs.text_ids, inputs.text_mask)
            fused = Rahf.fuse(self, inputs.image_tokens, ids, mask, layers.subkey(inputs.key, task))
            return self._part(head)(fused.image, layers.subkey(key, task))

        return jax.lax.map(ask, first + jnp.arange(count))

    def sample(self, batch: Batch, draw_key: jax.Array, key: layers.Key = None) -> TaskLogits:
        """Outputs of `config.tasks_per_example` tasks of each example, drawn uniformly; `key` is for dropout.

        Every head sees only the passes of its own tasks, in a number of places that is known at compile time.
        """
        passes = self.config.tasks_per_example
        tasks = draw_tasks(draw_key, len(batch.image), passes)
        seen = self.see(batch.image, layers.subkey(key, 0))
        tokens, text_ids, text_mask = (
            jnp.repeat(x, passes, 0) for x in (self.projection(seen), batch.text_ids, batch.text_mask)
        )
        ids, mask = prepend(self.config.task_ids, tasks.reshape(-1), text_ids, text_mask)
        fused = Rahf.fuse(self, tokens, ids, mask, layers.subkey(key, 1))
        strata = len(batch.image) // _stratum(len(batch.image))
        heatmap, score, sequence = (places(tasks, strata, *kind) for kind in (_HEATMAPS, _SCORES, _SEQUENCE))
        memory = Fused(*(pick(x, sequence.rows) for x in fused[:3]))
        targets = pick(batch.target_ids, sequence.rows // passes)
        return TaskLogits(
            self._part(self.heatmap_head)(pick(fused.image, heatmap.rows), layers.subkey(key, 2)),
            self._part(self.score_head)(pick(fused.image, score.rows), layers.subkey(key, 3)),
            self.sequence_logits(memory, targets, layers.subkey(key, 4)),
            heatmap,
            score,
            sequence,
            passes,
            self.tag_logits(seen),
        )


def prepend(
    prefixes: tuple[tuple[int, ...], ...],
    tasks: Int[Array, " b"],
    text_ids: Int[Array, "b l"],
    text_mask: Bool[Array, "b l"],
) -> tuple[Int[Array, "b m"], Bool[Array, "b m"]]:
    """Puts each row's prefix directly in front of its prompt, and all padding behind it.

    Relative positions need that: the distance between two tokens is the same as if every row were alone.

    Args:
      prefixes: piece ids of each task's name, `config.task_ids`.
      tasks: of each row; the task after the last prefix has no prefix.
      text_ids, text_mask: the prompt, padding last.

    Returns:
      Ids and mask, longer than the prompt's by the longest prefix.

    Raises:
      ConfigError: no prefixes.
    """
    if len(prefixes) != len(label_prompts.TASKS):
        raise ConfigError(
            f"model.task_ids has {len(prefixes)} prefixes, expected {len(label_prompts.TASKS)}; a run finds them "
            "when it starts (rahf.critic.label_prompts.resolve)"
        )
    longest = max(map(len, prefixes))
    table = np.full((label_prompts.COUNT, longest + text_ids.shape[1]), PAD_ID, np.int32)
    for row, prefix in zip(table, prefixes):
        row[: len(prefix)] = prefix
    lengths = np.array([*map(len, prefixes), 0], np.int32)
    at = np.arange(table.shape[1])
    length = jnp.asarray(lengths)[tasks][:, None]
    source = at - length
    inside = jnp.clip(source, 0, text_ids.shape[1] - 1)
    text = (source >= 0) & (source < text_ids.shape[1]) & jnp.take_along_axis(text_mask, inside, 1)
    ids = jnp.where(text, jnp.take_along_axis(text_ids, inside, 1), jnp.asarray(table)[tasks])
    return ids, text | (source < 0)


def draw_tasks(key: jax.Array, batch_size: int, passes: int) -> Int[Array, "b p"]:
    """Draws different tasks for each example, every task with probability passes / 7.

    The examples of a stratum are put in a random order, and the seven tasks are dealt to them in turn, beginning at a
    random task. So the numbers of their passes differ by one at most, and every head knows how many places it needs.
    Strata are equally large parts of a batch, in its order. Passes are picked for the heads inside of strata, so that
    devices that hold complete strata exchange nothing. The draw does not depend on the mesh.
    """
    stratum = _stratum(batch_size)
    order, begin = jax.random.split(key)
    position = jnp.argsort(jax.random.uniform(order, (batch_size // stratum, stratum)), 1)
    first = jax.random.randint(begin, (batch_size // stratum, 1, 1), 0, label_prompts.COUNT)
    tasks = (first + position[..., None] * passes + jnp.arange(passes)) % label_prompts.COUNT
    return tasks.reshape(batch_size, passes)


def _stratum(batch_size: int) -> int:
    """Number of examples that share a draw: in a small stratum many places of the heads would be empty."""
    sizes = [d for d in range(label_prompts.COUNT, _LARGEST_STRATUM + 1) if batch_size % d == 0]
    return max(sizes, default=batch_size)


def places(tasks: Int[Array, "b p"], strata: int, first: int, count: int) -> Slots:
    """The places of the passes of some tasks, as many as there can be at most.

    Args:
      tasks: of `draw_tasks`.
      strata: number of strata.
      first, count: first task and number of tasks, in the order in which they are dealt.
    """
    dealt = tasks.reshape(strata, -1)
    rounds, rest = divmod(dealt.shape[1], label_prompts.COUNT)
    capacity = rounds * count + min(count, rest)
    wanted = (dealt >= first) & (dealt < first + count)
    rows = jnp.argsort(~wanted, 1, stable=True)[:, :capacity]
    valid = jnp.take_along_axis(wanted, rows, 1)
    task = jnp.where(valid, jnp.take_along_axis(dealt, rows, 1) - first, 0)
    return Slots(rows, task.reshape(-1), valid.reshape(-1))


def pick(values: Array, rows: Int[Array, "s n"]) -> Array:
    """Rows of [B,…], whose numbers count from the start of each of S equally large parts; [S · n,…]."""
    strata, count = rows.shape
    parts = values.reshape(strata, -1, *values.shape[1:])
    return jax.vmap(lambda part, of_part: part[of_part])(parts, rows).reshape(strata * count, *values.shape[1:])
