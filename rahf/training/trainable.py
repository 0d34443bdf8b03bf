"""Which parameters are trained: all, those whose paths match patterns, or low-rank adapters.

The optimizer, its state and the averaged parameters see only the trained tree: the chosen part of the
parameters, and under "lora" the adapters. With neither chosen, the trained tree is the parameters.
"""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from rahf.config import OptimizerConfig
from rahf.core.errors import ConfigError
from rahf.core.names import suggest
from rahf.nn import functional, layers
from rahf.nn.functional import Params

LORA = "lora"


def matching_paths(paths: Sequence[str], patterns: Sequence[str], field: str) -> list[str]:
    """The paths that any of the patterns describes; `*` stands for anything, slashes included.

    A pattern without wildcards also means everything below it: `vit` is `vit` and `vit/*`.

    Raises:
      ConfigError: a pattern that describes nothing.
    """
    paths_matched: set[str] = set()
    for pattern in patterns:
        matches = {p for p in paths if fnmatch.fnmatchcase(p, pattern) or fnmatch.fnmatchcase(p, pattern + "/*")}
        if not matches:
            parts = sorted({path.split("/")[0] for path in paths})
            raise ConfigError(f"{field}: no parameter is called {pattern!r}.{suggest(pattern, parts)}")
        paths_matched |= matches
    return sorted(paths_matched)


def is_partial(config: OptimizerConfig) -> bool:
    """Whether anything is frozen or adapted."""
    return bool(config.trainable) or config.lora.rank > 0


def trained(config: OptimizerConfig, params: Params, lora: Params | None) -> Params:
    """The tree that the optimizer sees, without copying."""
    if not is_partial(config):
        return params
    flat = functional.flatten(params)
    paths = matching_paths(list(flat), config.trainable, "optimizer.trainable")
    tree = functional.unflatten({path: flat[path] for path in paths})
    return tree if lora is None else tree | {LORA: lora["adapters"]}


def replaced(params: Params, lora: Params | None, tree: Params) -> tuple[Params, Params | None]:
    """Parameters and adapters with a trained tree in the place of what it was made from."""
    plain = {name: value for name, value in tree.items() if name != LORA}
    params = functional.unflatten(functional.flatten(params) | functional.flatten(plain))
    return params, lora if lora is None else lora | {"adapters": tree[LORA]}


def is_part(stored: dict[str, Any]) -> bool:
    """Whether a stored state (`params`, perhaps `ema`, `lora`) is of a run that trains a part of its network."""
    if stored.get("lora"):
        return True
    ema = stored.get("ema")
    return bool(ema) and functional.flatten(ema).keys() != functional.flatten(stored["params"]).keys()


def merged(params: Params, lora: Params | None) -> Params:
    """Ordinary parameters: W + scale · A · B for every adapted kernel W [in,out], A [in,rank], B [rank,out].

    Of a convolution W is [y,x,in,out], A [y,x,in,rank].
    """
    if lora is None:
        return params
    flat, adapters = functional.flatten(params), functional.flatten(lora["adapters"])
    for path in [p.removesuffix("/a") for p in adapters if p.endswith("/a")]:
        product = jnp.dot(adapters[path + "/a"], adapters[path + "/b"], precision="highest")
        flat[path] = flat[path] + lora["scale"] * product
    return functional.unflatten(flat)


def merged_params(params: Params, ema: Params | None, lora: Params | None) -> Params:
    """The parameters to evaluate and to hand out: the average where there is one, adapters merged."""
    if ema is not None:
        params, lora = replaced(params, lora, ema)
    return merged(params, lora)


def _adapters(config: OptimizerConfig, shapes: Params):
    """Builds a module that holds A and B of every adapted kernel, under the kernel's path."""
    flat = functional.flatten(shapes)

    def build() -> nnx.Module:
        root = nnx.Module()
        for path in matching_paths(list(flat), config.lora.patterns, "optimizer.lora.patterns"):
            if len(flat[path].shape) not in (2, 4):
                raise ConfigError(
                    f"optimizer.lora.patterns: {path} has shape {tuple(flat[path].shape)}; only matrices and "
                    "convolutions are adapted"
                )
            node = root
            for name in path.split("/"):
                if not hasattr(node, name):
                    setattr(node, name, nnx.Module())
                node = getattr(node, name)
            *inputs, outputs = flat[path].shape  # of a convolution: rows, columns, inputs
            node.a = layers.parameter(*inputs, config.lora.rank, std=math.prod(inputs) ** -0.5)
            node.b = layers.parameter(config.lora.rank, outputs)  # 0: the network starts as it was
        return root

    return build


def abstract_lora(config: OptimizerConfig, shapes: Params) -> Params | None:
    """Shapes of the adapters of a network, None without any."""
    if not config.lora.rank:
        return None
    _, adapters = functional.abstract(_adapters(config, shapes))
    return {"scale": jax.ShapeDtypeStruct((), jnp.float32), "adapters": adapters}


def make_lora(config: OptimizerConfig, shapes: Params, seed: int, shardings: Any) -> Params | None:
    """Fresh adapters that change nothing yet; `shardings` as of the state."""
    if not config.lora.rank:
        return None
    adapters = functional.init(_adapters(config, shapes), seed, shardings["adapters"])
    scale = jax.device_put(jnp.float32(config.lora.alpha / config.lora.rank), shardings["scale"])
    return {"scale": scale, "adapters": adapters}
