"""The loss of a saliency network: KLD, CC, SIM and NSS in TranSalNet's weights (spec 5.4), and log-likelihood.

All are computed on the network's grid, over the cells of the picture's frame.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from rahf.config import SaliencyLossConfig
from rahf.saliency.network import cells_inside

PARTS = ("kld", "cc", "sim", "nss", "likelihood")
_EPS = 1e-7


def measures(log_density: Float[Array, "b h w"], batch: Any) -> dict[str, Float[Array, " b"]]:
    """What the loss adds, of each example.

    Returns:
      kld: sum g log(g / p) in nats. cc: Pearson's correlation over the frame's cells. sim: sum min(g, p). nss: mean of
      (p - mean) / std at the fixations. likelihood: mean of log p at the fixations in nats, minus that of the uniform
      density. nss and likelihood are 0 where no fixations were recorded.
    """
    inside = cells_inside(batch.frame, log_density.shape[1:]).astype(jnp.float32)
    cells = inside.sum((1, 2))
    p, g = jnp.exp(log_density) * inside, batch.density
    kld = jnp.where(g > 0, g * (jnp.log(jnp.maximum(g, 1e-20)) - log_density), 0.0).sum((1, 2))
    mean = (1.0 / cells)[:, None, None]  # of p and of g: both sum to 1
    dp, dg = (p - mean) * inside, (g - mean) * inside
    norm = lambda d: jnp.sqrt(jnp.square(d).sum((1, 2)) + _EPS**2)
    cc = (dp * dg).sum((1, 2)) / (norm(dp) * norm(dg))
    sim = jnp.minimum(p, g).sum((1, 2))
    fixations = jnp.maximum(batch.counts.sum((1, 2)), 1.0)
    nss = (dp * batch.counts).sum((1, 2)) / fixations / (norm(dp) / jnp.sqrt(cells))
    above = (log_density + jnp.log(cells)[:, None, None]) * batch.counts
    return {"kld": kld, "cc": cc, "sim": sim, "nss": nss, "likelihood": above.sum((1, 2)) / fixations}


def weights(config: SaliencyLossConfig) -> dict[str, float]:
    """Of each measure in the loss; negative for what grows with agreement."""
    return {
        "kld": config.kld_weight,
        "cc": -config.cc_weight,
        "sim": -config.sim_weight,
        "nss": -config.nss_weight,
        "likelihood": -config.likelihood_weight,
    }


def total(
    config: SaliencyLossConfig, log_density: Float[Array, "b h w"], batch: Any, examples: Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a batch or a part of it, and its parts with their signs, unweighted.

    Args:
      examples: number of examples in the whole batch.
    """
    values = measures(log_density, batch)
    mask = batch.example_mask.astype(jnp.float32)
    parts = {name: (values[name] * mask).sum() / examples for name in PARTS}
    factors = weights(config)
    return sum(factors[name] * parts[name] for name in PARTS), parts
