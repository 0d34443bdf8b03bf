"""AdamW or Adafactor with warm-up, schedules, gradient clipping and a weight-decay mask (spec 2.7)."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import optax

from rahf.config import OptimizerConfig
from rahf.nn import functional

#: Matrices that are looked up or added rather than multiplied with: decay would only shrink them.
_NOT_DECAYED = ("embedding", "position", "table", "class_token")


_PAPERS_WARMUP = 2000  # steps (spec 2.7)


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate at step s = 0, 1, …: linear warm-up over w steps, then the chosen course.

    rsqrt: lr · sqrt(w / s) (0.015, w 2000: 0.0075 at 1,000, 0.015 at 2,000, 0.00474 at 20,000);
    cosine: down to `final_fraction` of it at the last step; constant.

    Without warm-up w does not say how fast rsqrt falls: the rate then is lr for the 2,000 steps of the paper's warm-up,
    and falls from there on as the paper's.
    """
    peak, warmup = config.learning_rate, max(config.warmup_steps, 1)

    def warm(step):
        return jnp.asarray(step, jnp.float32) / warmup

    def after(step):  # optax's cosine multiplies in another order: a run of version 0 would not go on to the bit
        s = jnp.asarray(step, jnp.float32) + warmup
        if config.schedule == "rsqrt":
            w = warmup if config.warmup_steps > 0 else _PAPERS_WARMUP
            return jnp.sqrt(w / jnp.maximum(s, w))
        if config.schedule == "cosine":
            done = jnp.clip((s - warmup) / max(steps - warmup, 1), 0.0, 1.0)
            return config.final_fraction + (1 - config.final_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        return jnp.ones_like(s)

    # The peak multiplies what is joined: XLA would fold it into each course, which rounds another way.
    course = optax.join_schedules([warm, after], [warmup])
    return lambda step: peak * course(step)


def decay_mask(params: functional.Params) -> functional.Params:
    """True for kernels and matrices; False for biases, norms, embeddings and position tables."""
    flat = functional.flatten(params)
    return functional.unflatten({p: v.ndim >= 2 and p.rsplit("/", 1)[-1] not in _NOT_DECAYED for p, v in flat.items()})


def _adam(config: OptimizerConfig, factor: Callable[[str], float]) -> optax.GradientTransformation:
    def scale(updates, state, params=None):
        flat = functional.flatten(updates)
        return functional.unflatten({path: step * factor(path) for path, step in flat.items()}), state

    adam = optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)
    # This state, which is empty, lies in every checkpoint since version 0.
    scaled = optax.GradientTransformation(lambda params: optax.MaskedState(optax.ScaleState()), scale)
    return optax.chain(adam, scaled)


def _adafactor() -> optax.GradientTransformation:
    """Shazeer & Stern 2018 without momentum: steps are relative to a parameter's root mean square, at least 1e-3.

    Second moments are kept as sums over rows and columns of matrices with at least 128 of both.
    """
    return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())


def make(
    config: OptimizerConfig,
    steps: int,
    factor: Callable[[str], float] = lambda path: 1.0,
    updates: int = 1,
) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` steps, each of some updates, which have the step's learning rate.

    Adam's step for a parameter counts `factor(path)` times.
    """
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    # Step s of the loop uses the rate of s + 1, so that the first step already learns.
    rate = schedule(config, steps)
    return optax.chain(
        clip,
        _adafactor() if config.kind == "adafactor" else _adam(config, factor),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        optax.scale_by_learning_rate(lambda count: rate((count if updates == 1 else count // updates) + 1)),
    )
