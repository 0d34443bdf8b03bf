"""Few-shot adaptation of a saliency model to another data set: centre bias, scale and blur, eight numbers in all.

Data sets differ in where viewers begin to look, in how long they look, and in the eye-tracker. These are the parameters
`rahf.saliency.network.ADAPTED`; tower and decoder stay as they are (Linardos et al. 2021 adapt in this way, too).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from data_pipelines.gaze import examples
from data_pipelines.gaze.examples import GazeBatch
from data_pipelines.loading.examples import RecordSequence
from rahf.config import SaliencyConfig
from rahf.core import tree
from rahf.core.errors import ArgumentError, NotFinite
from rahf.images import check_header
from rahf.nn import functional
from rahf.saliency import losses
from rahf.saliency.from_run import at_scales, joined, of_readout, resized_canvas, scaled_frame
from rahf.saliency.network import ADAPTED
from rahf.saliency.predictor import Saliency

_STEPS, _RATE = 300, 0.03


def adapt(model: Saliency, source: RecordSequence, pictures: int = 50, steps: int = _STEPS) -> Saliency:
    """A model whose centre bias, scale and blur are those that fit the first pictures of a data set best.

    The log-likelihood of the fixations is maximised; for pictures without fixations, minus the KLD of the density.

    Args:
      model: of a run directory.
      source: records of `rahf prepare saliency`.
      pictures: how many of them are used.
      steps: of Adam.

    Returns:
      A new model; `model` stays as it is.

    Raises:
      ArgumentError: no pictures, an exported file, or a model without a centre bias (Augsal).
      NotFinite: the adaptation diverged.
    """
    if not model.center_biased:
        raise ArgumentError(
            f"adapt: {model.name} has no centre bias, scale and blur; give a model of the saliency family"
        )
    count = min(pictures, len(source))
    if count < 1:
        raise ArgumentError(f"adapt: expected at least one picture, found {count}")
    if model.graphdef is None:
        raise ArgumentError("adapt: an exported file holds no gradient of its parameters; give the run directory")
    groups = _readouts(model, [source[index] for index in range(count)])
    fixed = model.params

    def objective(adapted: tree.Params) -> jax.Array:
        total = 0.0
        for parts, batch in groups:
            frame, bias, largest = jnp.asarray(batch.frame), jnp.ones(len(batch.frame)), parts[0][0]
            found = []
            for config, graphdef, readout in parts:
                network = functional.merge(graphdef, fixed | adapted)
                found.append(of_readout(config, network, readout, scaled_frame(frame, largest, config), bias))
            logs = joined(largest, found, frame)
            values = losses.measures(logs, batch)
            fixated = batch.counts.sum((1, 2)) > 0
            total += jnp.where(fixated, -values["likelihood"], values["kld"]).sum()
        return total / count

    optimizer = optax.adam(optax.cosine_decay_schedule(_RATE, steps))

    @jax.jit
    def run(adapted: tree.Params) -> tuple[tree.Params, jax.Array]:
        def step(_: Any, carry: Any) -> Any:
            adapted, state = carry
            updates, state = optimizer.update(jax.grad(objective)(adapted), state)
            return optax.apply_updates(adapted, updates), state

        adapted, _ = jax.lax.fori_loop(0, steps, step, (adapted, optimizer.init(adapted)))
        return adapted, objective(adapted)

    adapted, value = run({name: fixed[name] for name in ADAPTED})
    if not np.isfinite(value):
        raise NotFinite("adapt: the likelihood is not finite; are the fixations those of these pictures?")
    return Saliency(
        model.config,
        model.params | adapted,
        model.functions,
        name=f"{model.name}-adapted",
        step=model.step,
        model_id=f"{model.model_id}-adapted",
        weight_license=model.weight_license,
        graphdef=model.graphdef,
    )


def _readouts(
    model: Saliency, records: list[Any]
) -> list[tuple[list[tuple[SaliencyConfig, Any, jax.Array]], GazeBatch]]:
    """For each canvas that occurs: the network's config, its structure and the decoder's readouts at each scale, the
    largest first; and the examples."""
    by_canvas: dict[int, list[int]] = {}
    for number, record in enumerate(records):
        header = check_header(record.image)
        by_canvas.setdefault(model.canvas_of((header.height, header.width)), []).append(number)
    groups = []
    for canvas, numbers in sorted(by_canvas.items()):
        scales = at_scales(model.config.model, model.canvases[canvas])
        largest = scales[0][0]
        batch = examples.stack([examples.example(records[number], number, largest) for number in numbers])
        parts = []
        for config, graphdef in scales:
            decoded = jax.jit(
                lambda params, image, graphdef=graphdef, config=config: functional.merge(graphdef, params).decoded(
                    resized_canvas(image, config)
                )
            )
            # One picture at a time, [1 or 2 with its mirror image, h, w]: first all pictures, then all mirror images.
            readouts = jnp.stack([decoded(model.params, image[None]) for image in batch.image], 1)
            parts.append((config, graphdef, readouts.reshape(-1, *readouts.shape[2:])))
        groups.append((parts, batch._replace(image=None)))
    return groups
