"""AdamW or Adafactor with warm-up, schedules, gradient clipping and a weight-decay mask (spec 2.7)."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from rahf.config import ModelConfig, OptimizerConfig
from rahf.nn import functional

#: Matrices that are looked up or added rather than multiplied with: decay would only shrink them.
_NOT_DECAYED = ("embedding", "position", "table", "class_token")
_T5 = ("encoder", "decoder")


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate at step s = 0, 1, …: linear warm-up over w steps, then the chosen course.

    rsqrt: lr · sqrt(w / s) (0.015, w 2000: 0.0075 at 1,000, 0.015 at 2,000, 0.00474 at 20,000);
    cosine: down to `final_fraction` of it at the last step; constant.
    """
    peak, warmup = config.learning_rate, max(config.warmup_steps, 1)

    def at(step):
        s = jnp.asarray(step, jnp.float32)
        if config.schedule == "rsqrt":
            after = jnp.sqrt(warmup / jnp.maximum(s, warmup))
        elif config.schedule == "cosine":
            done = jnp.clip((s - warmup) / max(steps - warmup, 1), 0.0, 1.0)
            after = config.final_fraction + (1 - config.final_fraction) * 0.5 * (1 + jnp.cos(jnp.pi * done))
        else:
            after = 1.0
        return peak * jnp.where(s < warmup, s / warmup, after)

    return at


def decay_mask(params: functional.Params) -> functional.Params:
    """True for kernels and matrices; False for biases, norms, embeddings and position tables."""
    flat = functional.flatten(params)
    return functional.unflatten({p: v.ndim >= 2 and p.rsplit("/", 1)[-1] not in _NOT_DECAYED for p, v in flat.items()})


def is_t5_query(params: functional.Params) -> functional.Params:
    """True for the query kernels of the T5 stacks."""
    flat = functional.flatten(params)
    return functional.unflatten({p: p.split("/")[0] in _T5 and p.endswith("query/kernel") for p in flat})


def _adam(config: OptimizerConfig, model: ModelConfig) -> optax.GradientTransformation:
    # T5 folds the attention scale d^-1/2 into its query kernels, but Adam's steps do not shrink with the
    # parameter. Unfolded, they would be these; without it the logits of a deep stack saturate early.
    fold = optax.masked(optax.scale(model.t5.head_width**-0.5), is_t5_query)
    return optax.chain(optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps), fold)


def _adafactor() -> optax.GradientTransformation:
    """Shazeer & Stern 2018 without momentum: steps are relative to a parameter's root mean square, at least 1e-3.

    Second moments are kept as sums over rows and columns of matrices with at least 128 of both.
    """
    return optax.chain(optax.scale_by_factored_rms(), optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms())


def make(config: OptimizerConfig, model: ModelConfig, steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `steps` steps."""
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    # Step s of the loop uses the rate of s + 1, so that the first step already learns.
    rate = schedule(config, steps)
    return optax.chain(
        clip,
        _adafactor() if config.kind == "adafactor" else _adam(config, model),
        optax.add_decayed_weights(config.weight_decay, decay_mask),
        optax.scale_by_learning_rate(lambda count: rate(count + 1)),
    )
