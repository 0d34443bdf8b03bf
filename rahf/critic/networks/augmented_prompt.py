"""The augmented-prompt variant: one heatmap head and one score head; the prompt says which label is asked for.

RAHF (Liang et al., CVPR 2024), section 4.1: a task string is put in front of the prompt, and one (task, label)
pair is one training example. The image goes through the ViT once, its tokens through the fusion stack once per
task. The target sequence has no prefix, so its pass is that of the multi-head variant.
"""

from __future__ import annotations

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from rahf.config import CriticConfig
from rahf.core.batch import HEATMAPS, SCORES, Batch
from rahf.core.errors import ConfigError
from rahf.critic import label_prompts as tasks_lib
from rahf.critic.networks.multi_head import Rahf
from rahf.critic.networks.outputs import Fused
from rahf.nn import layers
from rahf.text import PAD_ID

#: First task and number of tasks of each kind of output, in the order of `rahf.critic.label_prompts.TASKS`.
_HEATMAPS, _SCORES, _SEQUENCE = (0, len(HEATMAPS)), (len(HEATMAPS), len(SCORES)), (tasks_lib.COUNT - 1, 1)
#: Examples that share a draw of tasks, at most; see `draw`.
_LARGEST_STRATUM = 32


class Inputs(NamedTuple):
    """What a task's pass needs again: image tokens [B,N,D], prompt [B,L] with its mask, and a key or None."""

    image_tokens: Float[Array, "b n d"]
    text_ids: Int[Array, "b l"]
    text_mask: Bool[Array, "b l"]
    key: layers.Key


class Slots(NamedTuple):
    """The passes that go through one head, S strata of n places each.

    `rows` is the number of a pass in its stratum, `tasks` counts from the head's first task; places whose `valid`
    is False are empty.
    """

    rows: Int[Array, "s n"]
    tasks: Int[Array, " m"]  # m = s · n
    valid: Bool[Array, " m"]


class Sampled(NamedTuple):
    """Raw outputs of the tasks drawn in a training step, float32, and whose they are."""

    heatmaps: Float[Array, "i s s"]
    scores: Float[Array, " j"]
    sequence: Float[Array, "k t v"]
    heatmap_slots: Slots
    score_slots: Slots
    sequence_slots: Slots
    passes: int  # of each example; a task is drawn with probability passes / 7
    tags: Float[Array, "b v"] | None = None  # of all examples: needs no prompt

    def of_examples(self, values: Array, slots: Slots) -> Array:
        """The rows of a [B,…] array that belong to the slots' examples, [m,…]."""
        return pick(values, slots.rows // self.passes)


class AugmentedRahf(Rahf):
    """Image and prompt → the same outputs as `Rahf`, each by a pass with its own prefix."""

    HEATMAP_HEADS, SCORE_HEADS = ("head",), ("head",)

    def __init__(self, config: CriticConfig):
        super().__init__(config)
        if not 1 <= config.tasks_per_example <= tasks_lib.COUNT:
            raise ConfigError(
                f"model.tasks_per_example {config.tasks_per_example}: expected 1 to {tasks_lib.COUNT}, as many as there are"
            )

    def fuse(
        self,
        image_tokens: Float[Array, "b n d"],
        text_ids: Int[Array, "b l"],
        text_mask: Bool[Array, "b l"],
        key: layers.Key = None,
    ) -> Fused:
        """The pass without prefix, whose memory the decoder sees; heatmaps and scores begin from its inputs."""
        fused = super().fuse(image_tokens, text_ids, text_mask, layers.subkey(key, 0))
        return fused._replace(inputs=Inputs(image_tokens, text_ids, text_mask, layers.subkey(key, 1)))

    def heatmap_logits(self, fused: Fused, key: layers.Key = None) -> Float[Array, "b s s 2"]:
        """Logits of both heatmaps in order HEATMAPS, float32; two passes."""
        return jnp.moveaxis(self._ask(fused.inputs, _HEATMAPS, self.heatmap_head, key), 0, -1)

    def score_logits(self, fused: Fused, key: layers.Key = None) -> Float[Array, "b 4"]:
        """Logits of the four scores in order SCORES, float32; four passes."""
        return jnp.moveaxis(self._ask(fused.inputs, _SCORES, self.score_head, key), 0, -1)

    def _ask(self, inputs: Inputs, tasks: tuple[int, int], head: Callable, key: layers.Key) -> Array:
        """One pass and one output per task, stacked in front.

        One task after the other, by a scan: as fast as all tasks in one large batch (demo's network, batch 32, 2 CPU
        cores), with a sixth of the memory, and one compiled body.
        """
        first, count = tasks

        def one(task):
            rows = jnp.broadcast_to(task, inputs.text_ids.shape[:1])
            ids, mask = prepend(self.config.task_ids, rows, inputs.text_ids, inputs.text_mask)
            fused = Rahf.fuse(self, inputs.image_tokens, ids, mask, layers.subkey(inputs.key, task))
            return self._part(head)(fused.image, layers.subkey(key, task))

        return jax.lax.map(one, first + jnp.arange(count))

    def sample(self, batch: Batch, draw_key: jax.Array, key: layers.Key = None) -> Sampled:
        """Outputs of `config.tasks_per_example` tasks of each example, drawn uniformly; `key` is for dropout.

        Every head sees only the passes of its own tasks, in places whose number is known beforehand.
        """
        passes = self.config.tasks_per_example
        tasks = draw(draw_key, len(batch.image), passes)
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
        return Sampled(
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
    """Puts each row's prefix in front of its prompt, nothing in between, padding behind.

    So a token is as far from its neighbours as if every row were alone, which relative positions rely on.

    Args:
      prefixes: piece ids of each task's name, `config.task_ids`.
      tasks: of each row; the one after the last prefix has none.
      text_ids, text_mask: the prompt, padding last.

    Returns:
      Ids and mask, longer than the prompt's by the longest prefix.

    Raises:
      ValueError: no prefixes.
    """
    if len(prefixes) != len(tasks_lib.TASKS):
        raise ConfigError(
            f"model.task_ids has {len(prefixes)} prefixes, expected {len(tasks_lib.TASKS)}; a run finds them when it "
            "starts (rahf.critic.label_prompts.resolve)"
        )
    longest = max(map(len, prefixes))
    table = np.full((tasks_lib.COUNT, longest + text_ids.shape[1]), PAD_ID, np.int32)
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


def draw(key: jax.Array, batch_size: int, passes: int) -> Int[Array, "b p"]:
    """Draws different tasks for each example, every task with probability passes / 7.

    The examples of a stratum stand in a random order, and the seven tasks are dealt to them in turn, beginning
    at a random one: so their numbers differ by one at most, and every head knows how many places it needs.
    Strata are equally large parts of a batch, in its order: passes are picked for the heads inside of them, so
    that devices holding whole strata need not exchange anything. The mesh has no part in it: on another one,
    the same tasks are drawn.
    """
    stratum = _stratum(batch_size)
    order, begin = jax.random.split(key)
    position = jnp.argsort(jax.random.uniform(order, (batch_size // stratum, stratum)), 1)
    first = jax.random.randint(begin, (batch_size // stratum, 1, 1), 0, tasks_lib.COUNT)
    tasks = (first + position[..., None] * passes + jnp.arange(passes)) % tasks_lib.COUNT
    return tasks.reshape(batch_size, passes)


def _stratum(batch_size: int) -> int:
    """Examples that share a draw: in a small stratum, many places of the heads would stay empty."""
    sizes = [d for d in range(tasks_lib.COUNT, _LARGEST_STRATUM + 1) if batch_size % d == 0]
    return max(sizes, default=batch_size)


def places(tasks: Int[Array, "b p"], strata: int, first: int, count: int) -> Slots:
    """Where the passes of some of the tasks are, as many places as there may be at most.

    Args:
      tasks: of `draw`.
      strata: number of strata.
      first, count: the tasks, neighbours in the order in which they are dealt.
    """
    dealt = tasks.reshape(strata, -1)
    whole, rest = divmod(dealt.shape[1], tasks_lib.COUNT)
    capacity = whole * count + min(count, rest)
    wanted = (dealt >= first) & (dealt < first + count)
    rows = jnp.argsort(~wanted, 1, stable=True)[:, :capacity]
    valid = jnp.take_along_axis(wanted, rows, 1)
    found = jnp.where(valid, jnp.take_along_axis(dealt, rows, 1) - first, 0)
    return Slots(rows, found.reshape(-1), valid.reshape(-1))


def pick(values: Array, rows: Int[Array, "s n"]) -> Array:
    """Rows of [B,…], numbered in each of S equally large parts; [S · n,…]."""
    strata, count = rows.shape
    parts = values.reshape(strata, -1, *values.shape[1:])
    return jax.vmap(lambda part, some: part[some])(parts, rows).reshape(strata * count, *values.shape[1:])
