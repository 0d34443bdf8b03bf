"""The pure prediction step of an evaluation: predictions, generated targets and the losses of each example."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax

from rahf.config import Config
from rahf.core.batch import Batch, Prediction
from rahf.critic import apply, losses
from rahf.critic.networks.outputs import Logits
from rahf.nn import functional


class Evaluated(NamedTuple):
    """Predictions of a batch, the generated target ids, and the loss parts of each example."""

    prediction: Prediction
    generated: jax.Array | None  # int32 [B,T]; None if generation was left out
    parts: losses.Parts  # each float32 [B], 0 where an example lacks the label


def make_eval_step(
    graphdef, config: Config, suffix_id: int, generate: bool
) -> Callable[[functional.Params, Batch], Evaluated]:
    """Compiles (params, batch) → predictions and per-example losses."""

    def step(params: functional.Params, batch: Batch) -> Evaluated:
        model = functional.merge(graphdef, params)
        fused = model.fuse(model.image_tokens(batch.image), batch.text_ids, batch.text_mask)
        logits = Logits(
            model.heatmap_logits(fused), model.score_logits(fused), model.sequence_logits(fused, batch.target_ids)
        )
        prediction = apply.predict(model, batch, suffix_id, fused, logits)
        one = jax.tree.map(lambda x: x[:, None], (logits, batch))
        parts = jax.vmap(lambda pair: losses.total(config.loss, *pair)[1])(one)
        generated = model.generate(fused, batch.target_ids.shape[1]) if generate else None
        return Evaluated(prediction, generated, parts)

    return jax.jit(step)
