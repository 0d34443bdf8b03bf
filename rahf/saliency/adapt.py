"""Few-shot adaptation of a saliency model to another data set: centre bias, scale and blur, eight numbers in all.

Data sets differ in where viewers begin to look, in how long they look, and in the eye-tracker. These are the parameters
`rahf.saliency.network.ADAPTED`; tower and decoder stay as they are (Linardos et al. 2021 adapt in this way, too).
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from data_pipelines.gaze import examples
from data_pipelines.gaze.examples import GazeBatch
from data_pipelines.loading.examples import RecordSequence
from rahf.core import tree
from rahf.core.errors import ArgumentError, NotFinite
from rahf.images import check_header
from rahf.nn import functional
from rahf.saliency import losses
from rahf.saliency.network import ADAPTED, SaliencyNetwork
from rahf.saliency.predictor import Saliency

_STEPS, _RATE = 300, 0.03
_NO_BLUR = np.log(1e-3)  # of a Gaussian so narrow that it changes nothing


def adapt(model: Saliency, source: RecordSequence, pictures: int = 50, steps: int = _STEPS) -> Saliency:
    """A model whose centre bias, scale and blur are those that fit the first pictures of a data set best.

    The log-likelihood of the fixations is maximised; for pictures without fixations, minus the KLD of the density.

    Args:
      model: a run or an exported file.
      source: records of `rahf prepare saliency`.
      pictures: how many of them are used.
      steps: of Adam.

    Returns:
      A new model; `model` stays as it is.

    Raises:
      ArgumentError: no pictures.
      NotFinite: the adaptation diverged.
    """
    count = min(pictures, len(source))
    if count < 1:
        raise ArgumentError(f"adapt: expected at least one picture, found {count}")
    groups = _readouts(model, [source[index] for index in range(count)])
    graphdefs = [functional.abstract(lambda config=config: SaliencyNetwork(config))[0] for config, _, _ in groups]
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, model.params)
    fixed = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), model.params)

    def objective(adapted: tree.Params) -> jax.Array:
        total = 0.0
        for graphdef, (_, readout, batch) in zip(graphdefs, groups):
            logs = functional.merge(graphdef, fixed | adapted).finish(readout, batch.frame)
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
    cast = lambda name: jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), adapted[name], dtypes[name])
    return Saliency(
        model.config,
        model.params | {name: cast(name) for name in ADAPTED},
        model.functions,
        name=f"{model.name}-adapted",
        step=model.step,
        model_id=f"{model.model_id}-adapted",
        weight_license=model.weight_license,
        graphdef=model.graphdef,
    )


def _readouts(model: Saliency, records: list[Any]) -> list[tuple[Any, jax.Array, GazeBatch]]:
    """For each canvas that occurs: the network's config on it, what the decoder says, and the examples.

    With scale 1, no blur and no centre bias the log-density is the readout but for a constant, which the softmax drops.
    """
    like = lambda name, value: jax.tree.map(lambda leaf: jnp.full(leaf.shape, value, leaf.dtype), model.params[name])
    params = model.params | {"scale": like("scale", 1.0), "blur": like("blur", _NO_BLUR)}
    by_canvas: dict[int, list[int]] = {}
    for number, record in enumerate(records):
        header = check_header(record.image)
        by_canvas.setdefault(model.canvas_of((header.height, header.width)), []).append(number)
    groups = []
    for canvas, numbers in sorted(by_canvas.items()):
        height, width = model.canvases[canvas]
        config = dataclasses.replace(model.config.model, image_height=height, image_width=width)
        made = [examples.example(records[number], number, config) for number in numbers]
        function = jax.jit(model.functions[canvas])
        parts = [
            function(params, one.image[None].astype(np.float32) / 255, one.frame[None], np.zeros(1, np.float32))
            for one in made
        ]
        groups.append((config, jnp.concatenate(parts), examples.stack(made)._replace(image=None)))
    return groups
