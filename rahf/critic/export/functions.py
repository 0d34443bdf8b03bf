"""The functions of an exported file, serialised with their derivatives."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from rahf.core import tree
from rahf.critic.critic import Critic


def score_weights(critic: Critic) -> dict[str, Any]:
    """The parameters that the scores depend on, by path."""
    flat = tree.flatten(critic.params)
    pixels, text, _, _ = _inputs(critic, 1)
    traced = jax_export.export(jax.jit(critic.network.scores))(_shapes(flat), pixels, *text)
    return {path: leaf for i, (path, leaf) in enumerate(flat.items()) if i in set(traced.module_kept_var_idx)}


def serialize_functions(
    critic: Critic, weights: Mapping[str, np.ndarray], scores_only: bool, platforms: tuple[str, ...]
) -> dict[str, bytes]:
    """Exports and serialises functions of (weights as a nested dict, pixels float32 [b,S,S,3], text_ids, text_mask, …).

    The batch size b is symbolic. The functions widen weights of other dtypes to float32.

    Args:
      critic: the model.
      weights: by path, in the dtype of the file; what is exported must not depend on parameters that are missing here.
      scores_only: leave out `heatmaps` and `predict`.
      platforms: as in `jax.export.export`.

    Returns:
      Serialised functions by name: `scores` gives [b,4], `heatmaps` [b,S,S,2]; `predict` takes also prompt_ids and
      word_end, and gives the fields of `rahf.core.batch.Prediction`.
    """
    (batch,) = jax_export.symbolic_shape("b")
    pixels, text, prompt, ends = _inputs(critic, batch)
    network, all_params = critic.network, tree.flatten(critic.params)

    def widened(params):
        flat = {path: jnp.asarray(leaf, jnp.float32) for path, leaf in tree.flatten(params).items()}
        # The modules need every parameter. XLA drops those that the function does not use from the program.
        return tree.unflatten({p: flat[p] if p in flat else jnp.zeros(w.shape, w.dtype) for p, w in all_params.items()})

    def predict(params, *arrays):
        return tuple(network.forward(widened(params), *arrays)[0])

    def scores(params, *arrays):
        return network.scores(widened(params), *arrays)

    def heatmaps(params, *arrays):
        return network.heatmaps(widened(params), *arrays)

    functions = {"scores": (scores, (pixels, *text))}
    if not scores_only:
        functions |= {"heatmaps": (heatmaps, (pixels, *text)), "predict": (predict, (pixels, *text, prompt, ends))}
    programs = {}
    with without_locations():
        for name, (function, inputs) in functions.items():
            exported = jax_export.export(jax.jit(function), platforms=platforms)(_shapes(weights), *inputs)
            programs[name] = bytes(exported.serialize(vjp_order=1))
    return programs


@contextlib.contextmanager
def without_locations() -> Iterator[None]:
    """Keeps source locations out of the programs.

    They are absolute paths of this machine, down to the script that calls the export, and would make every file
    different.
    """
    name = "jax_traceback_in_locations_limit"
    limit = getattr(jax.config, name)
    jax.config.update(name, 0)
    try:
        yield
    finally:
        jax.config.update(name, limit)


def _shapes(flat: Mapping[str, Any]) -> tree.Params:
    return tree.unflatten({path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) for path, leaf in flat.items()})


def _inputs(critic: Critic, batch: Any) -> tuple[Any, tuple[Any, Any], Any, Any]:
    """Shapes of pixels, (text ids, text mask), prompt ids and word ends."""
    data, side = critic.config.data, critic.config.model.image_size
    spec = jax.ShapeDtypeStruct
    text = spec((batch, data.max_prompt_tokens), np.int32), spec((batch, data.max_prompt_tokens), np.bool_)
    return (
        spec((batch, side, side, 3), np.float32),
        text,
        spec((batch, data.max_target_tokens), np.int32),
        spec((batch, data.max_words), np.int32),
    )
