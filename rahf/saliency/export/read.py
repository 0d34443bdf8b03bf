"""Reads a saliency model of `rahf export`, without Flax and Orbax; needs what a critic's file needs."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import jax
import jax.numpy as jnp

from rahf import config as config_lib
from rahf.core import licenses, names, process
from rahf.core.errors import ArgumentError, ExportError, RahfError
from rahf.critic.export import archive, program
from rahf.critic.export.read import read_weights
from rahf.saliency.predictor import Saliency, canvases

KIND = "saliency"
CONFIG, WEIGHTS = "config.json", "weights.safetensors"
_MALFORMED = (TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError)


def read_export(path: str | os.PathLike, *, dtype: Any = None) -> Saliency:
    """Reads and checks an exported saliency model. Trust it as you would a program.

    Raises:
      ExportError: no exported saliency model, a newer, changed or unsafe one, or one for other devices.
      ArgumentError: a dtype that it was not exported with.
    """
    process.claim()
    model = model_of_archive(str(path), *archive.read_archive(path), dtype)
    licenses.log_export_licenses(os.path.basename(path), model.weight_license)
    return model


def model_of_archive(path: str, manifest: dict[str, Any], parts: dict[str, bytes], dtype: Any = None) -> Saliency:
    """The model of an archive that `read_archive` gave; `path` names the file in errors. Errors as above."""
    try:
        return _model(path, manifest, parts, dtype)
    except RahfError:
        raise
    except KeyError as error:
        raise ExportError(f"{path}: lacks {names.one_line(error, 80)}; not written by `rahf export`") from error
    except _MALFORMED as error:  # right checksums do not make a file right
        raise ExportError(f"{path}: is malformed ({names.one_line(repr(error), 200)}); export it again") from error


def _model(path: str, manifest: dict[str, Any], parts: dict[str, bytes], dtype: Any) -> Saliency:
    if (kind := manifest.get("kind", "critic")) != KIND:
        raise ExportError(f"{path}: holds a {names.one_line(kind, 40)}, no saliency model; load it with rahf.load")
    texts = [names.one_line(manifest[key]) for key in ("name", "model_id", "weight_license")]
    platforms, step = manifest["platforms"], manifest["step"]
    if not isinstance(platforms, list) or not isinstance(step, int | None):
        raise ExportError(f"{path}: its {archive.MANIFEST} is damaged; copy or export it again")
    platform = jax.default_backend()
    if platform == "gpu" and "rocm" not in str(jax.devices()[0].client.platform_version):
        platform = "cuda"
    if platform not in platforms:
        raise ExportError(f"{path}: exported for {', '.join(map(str, platforms))}, but JAX runs on {platform} here")
    config = config_lib.from_json(parts[CONFIG].decode(errors="replace"), where=f"{path}: {CONFIG}")
    if config.model.family != "saliency":
        raise ExportError(f"{path}: its {CONFIG} is of a {config.model.family} model; parts were put together wrongly")
    compute_dtype = config.model.compute_dtype
    if dtype is not None and jnp.dtype(dtype).name != compute_dtype:
        raise ArgumentError(f"dtype: {path} computes in {compute_dtype}, asked for {jnp.dtype(dtype).name}")
    if manifest["weights"]["sha256_with_id"] != seal(texts[1], parts[CONFIG], parts[WEIGHTS]):
        raise ExportError(
            f"{path}: its {archive.MANIFEST} says that it is model {texts[1]}, but network and weights are others; "
            "parts of two models were put together. Export the model again"
        )
    weights = read_weights(path, parts[WEIGHTS])
    functions = [
        program.differentiable(program.read_program(parts[f"functions/{name}.jax_export"], f"{path}: {name}"))
        for name in function_names(config)
    ]
    return Saliency(
        config,
        jax.device_put(weights),
        functions,
        name=texts[0],
        step=step,
        model_id=texts[1],
        weight_license=texts[2],
    )


def function_names(config: config_lib.Config) -> list[str]:
    """Names of the functions of the canvases."""
    return [f"log_density_{height}x{width}" for height, width in canvases(config)]


def seal(model_id: str, config: bytes, weights: bytes) -> str:
    """SHA-256 that binds an id to the network and the weights of a file."""
    digest = hashlib.sha256(model_id.encode())
    for part in (config, weights):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()
