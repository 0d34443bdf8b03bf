"""The pure training step and the pure prediction step."""

from __future__ import annotations

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rahf import losses
from rahf.batch import Batch, Prediction
from rahf.config import Config
from rahf.models import functional
from rahf.models import rahf as model_lib
from rahf.train.state import Setup, TrainState


class StepMetrics(NamedTuple):
    """Float32 scalars of one step: losses and gradient before its update, and what the update led to."""

    total: jax.Array
    parts: losses.Parts
    gradient_norm: jax.Array
    parameter_norm: jax.Array  # after the update; the only sign of a last update that went wrong


def loss_and_gradients(
    graphdef,
    config: Config,
    params: functional.Params,
    batch: Batch,
    key: jax.Array | None,
    step: jax.Array | None = None,
    suffix_id: int | None = None,
) -> tuple[tuple[jax.Array, losses.Parts], functional.Params]:
    """Loss, its parts, and gradients with respect to the parameters."""

    def loss(params):
        logits = functional.merge(graphdef, params)(batch, key)
        return losses.total(config.loss, logits, batch, step, suffix_id)

    return jax.value_and_grad(loss, has_aux=True)(params)


def make_train_step(
    config: Config, made: Setup, suffix_id: int | None = None
) -> Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]:
    """Compiles (state, batch) → (state, metrics). The old state is donated.

    `suffix_id` is the first piece of the suffix (`Tokenizer.suffix_ids[0]`), for `loss.suffix_weight`.

    Dropout keys are fold_in(seed, step), so a resumed run draws what the undisturbed one would have drawn.
    """
    dropout = any(
        part.dropout > 0
        for part in (config.model.vit, config.model.t5, config.model.heatmap_head, config.model.score_head)
    )

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        key = jax.random.fold_in(jax.random.key(config.train.seed), state.step) if dropout else None
        (total, parts), gradients = loss_and_gradients(
            made.graphdef, config, state.params, batch, key, state.step, suffix_id
        )
        updates, opt_state = made.optimizer.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        ema = state.ema
        if ema is not None:
            # Early on the average must forget the random start: Adam-like ramp of the decay.
            decay = jnp.minimum(config.optimizer.ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = jax.tree.map(lambda a, p: a * decay + p * (1.0 - decay), ema, params)
        metrics = StepMetrics(total, parts, optax.tree.norm(gradients), optax.tree.norm(params))
        return TrainState(state.step + 1, params, opt_state, ema), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(made.shardings, None))


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
        logits = model_lib.Logits(
            model.heatmap_logits(fused), model.score_logits(fused), model.sequence_logits(fused, batch.target_ids)
        )
        prediction = model_lib.predict(model, batch, suffix_id, fused)
        one = jax.tree.map(lambda x: x[:, None], (logits, batch))
        parts = jax.vmap(lambda pair: losses.total(config.loss, *pair)[1])(one)
        generated = model.generate(fused, batch.target_ids.shape[1]) if generate else None
        return Evaluated(prediction, generated, parts)

    return jax.jit(step)
