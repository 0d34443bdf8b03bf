"""The pure training step and the pure prediction step."""

from __future__ import annotations

from typing import Callable, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rahf.config import Config
from rahf.core.batch import Batch
from rahf.critic import label_prompts, losses
from rahf.critic.networks import kinds
from rahf.diffusion import loss as diffusion_loss
from rahf.nn import functional, gradients, layers
from rahf.training import accumulate, trainable
from rahf.training.state import Setup, TrainState


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
    whole: Callable[[functional.Params], functional.Params] = lambda params: params,
) -> tuple[tuple[jax.Array, losses.Parts], functional.Params]:
    """Loss, its parts, and gradients with respect to what is trained.

    Args:
      params: what is trained, the parameters or a part of them.
      key: of dropout, None without.
      whole: makes all parameters of it.
    """
    batch = kinds.outputs(config.model).narrow(batch)
    parts = config.train.accumulate
    tags = config.model.t5.vocab_size if config.model.tag_head else None
    counts = losses.counts(config.loss, batch, suffix_id, tags)
    examples = jnp.maximum(batch.example_mask.sum(), 1).astype(jnp.float32)

    def one(batch: Batch, number: jax.Array | None):
        part_key = key if number is None else layers.subkey(key, number)

        def loss(params):
            model = functional.merge(graphdef, whole(params))
            if config.model.kind == "diffusion":
                key = _draw_key(config, step, number)
                return diffusion_loss.drawn(config.model, model, batch, key, examples), losses.Parts(
                    *[jnp.float32(0)] * 4
                )
            if config.model.variant == "augmented-prompt":
                found = model.sample(batch, _draw_key(config, step, number), part_key)
                return losses.sampled(config.loss, found, batch, step, suffix_id, counts)
            return losses.total(config.loss, model(batch, part_key), batch, step, suffix_id, counts)

        with gradients.of_training():
            return jax.value_and_grad(loss, has_aux=True)(params)

    return one(batch, None) if parts == 1 else accumulate.summed(one, batch, parts)


def _draw_key(config: Config, step: jax.Array | None, part: jax.Array | None) -> jax.Array:
    """For the tasks of a part of a step; apart from the keys of dropout, which a run may do without."""
    key = jax.random.fold_in(jax.random.key(config.train.seed), 0 if step is None else step)
    key = jax.random.fold_in(key, label_prompts.COUNT)
    return key if part is None else jax.random.fold_in(key, part)


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
        trained = trainable.trained(config.optimizer, state.params, state.lora)
        whole = lambda tree: trainable.merged(*trainable.replaced(state.params, state.lora, tree))  # noqa: E731
        (total, parts), gradients = loss_and_gradients(
            made.graphdef, config, trained, batch, key, state.step, suffix_id, whole
        )
        updates, opt_state = made.optimizer.update(gradients, state.opt_state, trained)
        trained = optax.apply_updates(trained, updates)
        ema = state.ema
        if ema is not None:
            # Early on the average must forget the random start: Adam-like ramp of the decay.
            decay = jnp.minimum(config.optimizer.ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = jax.tree.map(lambda a, p: a * decay + p * (1.0 - decay), ema, trained)
        metrics = StepMetrics(total, parts, optax.tree.norm(gradients), optax.tree.norm(trained))
        params, lora = trainable.replaced(state.params, state.lora, trained)
        return TrainState(state.step + 1, params, opt_state, ema, lora), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(made.shardings, None))
