"""Reads a file of `rahf export`: the same critic, without Flax, Orbax and the rest.

Needs jax, numpy, sentencepiece, safetensors and Pillow. `rahf.load("file.rahf")` comes here.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from rahf import config as config_lib
from rahf.config import Config
from rahf.core import licenses, tree
from rahf.core.batch import Prediction
from rahf.core.errors import ArgumentError, ExportError
from rahf.critic import provenance
from rahf.critic.critic import Critic
from rahf.critic.export import archive, program
from rahf.critic.network import Network
from rahf.critic.provenance import Provenance, Quantiles
from rahf.nn.pixels import unit
from rahf.text import Tokenizer
from rahf.text.vocabulary import tokenizer_from_bytes

__all__ = ["ExportError", "load"]

#: Names of parts.
CONFIG, PREPROCESSING, TOKENIZER = "config.json", "preprocessing.json", "tokenizer.model"
WEIGHTS = "weights.safetensors"
_DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16)}


def load(path: str | os.PathLike, *, dtype: Any = None) -> Critic:
    """Reads and checks an exported model; trust in it must be that in a program.

    Args:
      path: the file.
      dtype: as in `rahf.load`; only the one it was exported to compute in is possible.

    Raises:
      ExportError: not an exported model, newer than this reader, changed, unsafe, or made for other devices.
      ValueError: another dtype.
    """
    manifest, parts = archive.read(path)
    try:
        return _critic(str(path), manifest, parts, dtype)
    except KeyError as error:
        raise ExportError(f"{path}: lacks {error}; not written by `rahf export`") from error


def _critic(path: str, manifest: dict[str, Any], parts: dict[str, bytes], dtype: Any) -> Critic:
    platforms = manifest["platforms"]
    here = jax.default_backend()
    here = "cuda" if here == "gpu" and "rocm" not in str(jax.devices()[0].client.platform_version) else here
    if here not in platforms:
        raise ExportError(
            f"{path}: exported for {', '.join(platforms)}, but JAX runs on {here} here; export it again for {here} "
            "(by default it is exported for all)"
        )
    config = config_lib.from_json(parts[CONFIG].decode(), where=f"{path}: {CONFIG}")
    computes = config.model.compute_dtype
    if dtype is not None and jnp.dtype(dtype).name != computes:
        raise ArgumentError(f"dtype: {path} computes in {computes}, asked for {jnp.dtype(dtype).name}; export it so")
    try:
        tokenizer = tokenizer_from_bytes(parts[TOKENIZER], f"{path}: {TOKENIZER}")
    except (ImportError, ValueError) as error:
        raise ExportError(str(error)) from error
    known = _provenance(path, manifest, parts, config, tokenizer)
    functions = {
        name: program.function(program.deserialize(parts[file], f"{path}: {file}"))
        for name, file in manifest["functions"].items()
    }
    licences = known.weight_licence
    licenses.tell_exported(os.path.basename(path), "" if licences == provenance.UNSPECIFIED else licences)
    params = jax.device_put(_weights(path, parts[WEIGHTS]))
    network = _network(functions, config.model.image_size)
    return Critic(
        config, params, tokenizer, manifest["name"], manifest["step"], network=network, describe=lambda _: known
    )


def _provenance(
    path: str, manifest: dict[str, Any], parts: dict[str, bytes], config: Config, tokenizer: Tokenizer
) -> Provenance:
    """Also checks that this reader prepares images and prompts as the exporter did."""
    found = provenance.preprocessing_hash(provenance.preprocessing(config, tokenizer))
    if found != manifest["preprocessing_hash"]:
        raise ExportError(
            f"{path}: exported by rahf {manifest['rahf']}, which prepares images or prompts otherwise than this one "
            f"(see {PREPROCESSING} in it); install that version, or export the model again"
        )
    quantiles = None
    if provenance.QUANTILES_FILE in parts:
        quantiles = Quantiles.from_json(parts[provenance.QUANTILES_FILE])
    return Provenance(manifest["model_id"], found, manifest["weight_licence"], quantiles)


def _weights(path: str, data: bytes) -> tree.Params:
    import safetensors

    try:
        found = safetensors.deserialize(data)
        flat = {n: np.frombuffer(t["data"], _DTYPES[t["dtype"]]).reshape(t["shape"]) for n, t in found}
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ExportError(f"{path}: {WEIGHTS} cannot be read ({error})") from error
    return tree.unflatten(flat)


def _network(functions: dict[str, Any], side: int) -> Network:
    """Functions of images of any size and kind, from those of float32 squares."""

    def forward(params, image, text_ids, text_mask, prompt_ids, word_end, generate=False):
        found = functions["predict"](params, unit(image, side), text_ids, text_mask, prompt_ids, word_end)
        return Prediction(*found), None

    def of(name):
        def run(params, pixels, text_ids, text_mask):
            return functions[name](params, unit(pixels, side), text_ids, text_mask)

        return run

    full = "predict" in functions
    return Network(forward if full else None, of("scores"), of("heatmaps") if full else None)
