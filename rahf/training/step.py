"""The pure training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rahf.nn import functional, gradients, layers
from rahf.training import accumulate, trainable
from rahf.training.state import Setup, TrainState
from rahf.training.task import Loss, Task

#: Added to the seed's key of a step for `Task.loss`'s `key`, so that it differs from the key of dropout.
_DRAWS = 7


class StepMetrics(NamedTuple):
    """Float32 scalars of one step: losses and gradient before its update, and what the update led to."""

    total: jax.Array
    parts: dict[str, jax.Array]
    gradient_norm: jax.Array
    parameter_norm: jax.Array  # after the update; the only sign of a last update that went wrong
    labels: dict[str, jax.Array] = {}  # numbers of labels in the batch, `Task.label_counts`


def loss_and_gradients(
    task: Task,
    graphdef: Any,
    params: functional.Params,
    batch: Any,
    step: jax.Array,
    merge: Callable[[functional.Params], functional.Params] = lambda params: params,
) -> tuple[Loss, functional.Params]:
    """Loss of a batch and gradients with respect to `params`, in `train.accumulate` parts one after the other.

    Keys are fold_in(seed, step), so a resumed run draws what the undisturbed one would have drawn.

    Args:
      params: what is trained, all parameters or a part of them.
      batch: the whole batch, on the devices.
      step: int32 scalar, steps done.
      merge: makes all parameters of `params`.
    """
    config = task.config
    step_key = jax.random.fold_in(jax.random.key(config.train.seed), step)
    dropout_key = step_key if task.uses_dropout else None
    draw_key = jax.random.fold_in(step_key, _DRAWS)
    batch = task.prepare_batch(batch)
    normalizers = task.normalizers(batch)

    def part_loss(batch: Any, number: jax.Array | None) -> tuple[tuple[jax.Array, dict], functional.Params]:
        key, part_key = draw_key, dropout_key
        if number is not None:
            key = jax.random.fold_in(draw_key, number)
            part_key = layers.subkey(dropout_key, number)

        def loss(params: functional.Params) -> tuple[jax.Array, dict]:
            return task.loss(functional.merge(graphdef, merge(params)), batch, key, part_key, step, normalizers)

        with gradients.of_training():
            return jax.value_and_grad(loss, has_aux=True)(params)

    parts = config.train.accumulate
    (total, named), grads = part_loss(batch, None) if parts == 1 else accumulate.summed(part_loss, batch, parts)
    return Loss(total, named), grads


def make_train_step(task: Task, setup: Setup) -> Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]:
    """Compiles (state, batch) → (state, metrics). The old state is donated."""
    optimizer = task.config.optimizer

    def step(state: TrainState, batch: Any) -> tuple[TrainState, StepMetrics]:
        trained = trainable.trained(optimizer, state.params, state.lora)
        merge = lambda tree: trainable.merged(*trainable.replaced(state.params, state.lora, tree))  # noqa: E731
        loss, gradients = loss_and_gradients(task, setup.graphdef, trained, batch, state.step, merge)
        with jax.named_scope("optimizer"):
            updates, opt_state = setup.optimizer.update(gradients, state.opt_state, trained)
            trained = optax.apply_updates(trained, updates)
        ema = state.ema
        if ema is not None:
            # Early on the average must forget the random start: Adam-like ramp of the decay. By hand, because
            # optax.incremental_update rounds the decay once more: saved averages would not go on to the bit.
            decay = jnp.minimum(optimizer.ema_decay, (1.0 + state.step) / (10.0 + state.step))
            ema = jax.tree.map(lambda a, p: a * decay + p * (1.0 - decay), ema, trained)
        counts = task.label_counts(task.normalizers(task.prepare_batch(batch)))  # computed once, with those of the loss
        norms = optax.tree.norm(gradients), optax.tree.norm(trained)
        metrics = StepMetrics(loss.total, loss.parts, *norms, counts)
        params, lora = trainable.replaced(state.params, state.lora, trained)
        return TrainState(state.step + 1, params, opt_state, ema, lora), metrics

    return jax.jit(step, donate_argnums=0, out_shardings=(setup.shardings, None))
