"""Reads a file of `rahf export`: the same critic, without Flax and Orbax. `rahf.load("file.rahf")` calls `read_export`.

Needs jax, flatbuffers, numpy, sentencepiece, safetensors and Pillow.
"""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors

from rahf import config as config_lib
from rahf.config import Config
from rahf.core import licenses, names, process, tree
from rahf.core.batch import Prediction
from rahf.core.errors import ArgumentError, ExportError, RahfError
from rahf.critic import families, provenance
from rahf.critic.critic import Critic
from rahf.critic.export import archive, program
from rahf.critic.network import Network
from rahf.critic.provenance import Provenance, Quantiles
from rahf.nn.pixels import unit
from rahf.text import Tokenizer
from rahf.text.vocabulary import tokenizer_from_bytes

__all__ = ["ExportError", "read_export"]

#: Member names of the parts.
CONFIG, PREPROCESSING, TOKENIZER = "config.json", "preprocessing.json", "tokenizer.model"
WEIGHTS = "weights.safetensors"
#: Parameters of parts that serve learning only (`CriticConfig.tag_head`); predictions do not depend on them, and files
#: written since format 2 lack them.
LEARNING_ONLY = "tags/"
_MALFORMED = (TypeError, ValueError, AttributeError, IndexError, ArithmeticError, RecursionError)
_DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16)}


def read_export(path: str | os.PathLike, *, dtype: Any = None) -> Critic:
    """Reads and checks an exported model, and logs licenses that restrict its use. Trust it as you would a program.

    Args:
      path: the file.
      dtype: as in `rahf.load`; an exported model computes only in the dtype that it was exported with.

    Raises:
      ExportError: the file is not an exported model, is newer than this reader, was changed, is unsafe, was made for
        other devices, or holds weights that are not finite.
      ValueError: another dtype.
    """
    process.claim()
    critic = critic_of_archive(str(path), *archive.read_archive(path), dtype)
    weight_license = critic.provenance.weight_license
    known_license = "" if weight_license == provenance.UNSPECIFIED else weight_license
    licenses.log_export_licenses(os.path.basename(path), known_license)
    return critic


def critic_of_archive(path: str, manifest: dict[str, Any], parts: dict[str, bytes], dtype: Any = None) -> Critic:
    """The critic of an archive that `read_archive` gave; `path` names the file in errors. Errors as above."""
    if (kind := manifest.get("kind", "critic")) != "critic":
        raise ExportError(
            f"{path}: holds a {names.one_line(kind, 40)} model, no critic; load it with rahf.load, or use `rahf look`"
        )
    try:
        return _critic(path, _checked(path, manifest), parts, dtype)
    except RahfError:
        raise
    except KeyError as error:
        raise ExportError(f"{path}: lacks {names.one_line(error, 80)}; not written by `rahf export`") from error
    except _MALFORMED as error:  # right checksums do not make a file right
        raise ExportError(f"{path}: is malformed ({names.one_line(repr(error), 200)}); export it again") from error


def _checked(path: str, manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with values of the right types, and texts of one printable line: they reach the terminal."""
    platforms, functions, step = manifest["platforms"], manifest["functions"], manifest["step"]
    texts = [manifest["rahf"], manifest["name"], manifest["model_id"], manifest["preprocessing_hash"]]
    texts.append(_weight_license(manifest))
    right = isinstance(platforms, list) and isinstance(functions, dict) and isinstance(step, int | None)
    if not right or not all(isinstance(text, str) for text in [*texts, *platforms, *functions.values()]):
        raise ExportError(f"{path}: its {archive.MANIFEST} is damaged; copy or export it again")
    shown = ("rahf", "name", "model_id", _license_key(manifest))
    return manifest | {key: names.one_line(manifest[key]) for key in shown}


def _license_key(manifest: dict[str, Any]) -> str:
    """Format 1 spelled the key with a c."""
    return "weight_licence" if manifest["format"] == 1 else "weight_license"


def _weight_license(manifest: dict[str, Any]) -> str:
    return manifest[_license_key(manifest)]


def _critic(path: str, manifest: dict[str, Any], parts: dict[str, bytes], dtype: Any) -> Critic:
    platforms = manifest["platforms"]
    platform = jax.default_backend()
    if platform == "gpu" and "rocm" not in str(jax.devices()[0].client.platform_version):
        platform = "cuda"
    if platform not in platforms:
        raise ExportError(
            f"{path}: exported for {', '.join(platforms)}, but JAX runs on {platform} here; export it again for "
            f"{platform} (by default it is exported for all)"
        )
    config = config_lib.from_json(parts[CONFIG].decode(errors="replace"), where=f"{path}: {CONFIG}")
    compute_dtype = config.model.compute_dtype
    if dtype is not None and jnp.dtype(dtype).name != compute_dtype:
        raise ArgumentError(
            f"dtype: {path} computes in {compute_dtype}, asked for {jnp.dtype(dtype).name}; export it so"
        )
    try:
        tokenizer = tokenizer_from_bytes(parts[TOKENIZER], f"{path}: {TOKENIZER}")
    except (ImportError, ValueError) as error:
        raise ExportError(str(error)) from error
    origin = _provenance(path, manifest, parts, config, tokenizer)
    weights = read_weights(path, parts[WEIGHTS])
    _check_model_id(path, manifest, config, weights, tokenizer)
    functions = {
        name: program.differentiable(program.read_program(parts[file], f"{path}: {file}"))
        for name, file in manifest["functions"].items()
    }
    params = jax.device_put(weights)
    network = _network(functions, config.model.image_size)
    return Critic(
        config,
        params,
        tokenizer,
        manifest["name"],
        manifest["step"],
        network=network,
        describe=lambda _: origin,
        outputs=_outputs(path, manifest, config),
    )


def _outputs(path: str, manifest: dict[str, Any], config: Config) -> families.Outputs:
    """What the model predicts; files of version 0 do not say which heads have learned nothing."""
    names = manifest.get("not_learnt", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ExportError(f"{path}: its {archive.MANIFEST} is damaged; copy or export it again")
    return families.outputs(config.model).without(names)


def _provenance(
    path: str, manifest: dict[str, Any], parts: dict[str, bytes], config: Config, tokenizer: Tokenizer
) -> Provenance:
    """Also checks that this reader preprocesses images and prompts as the exporter did."""
    preprocessing_hash = provenance.preprocessing_hash(provenance.describe_preprocessing(config, tokenizer))
    version_0 = provenance.preprocessing_hash(provenance.version_0_preprocessing(config, tokenizer))
    if manifest["preprocessing_hash"] not in (preprocessing_hash, version_0):
        raise ExportError(
            f"{path}: exported by rahf {manifest['rahf']}, which prepares images or prompts otherwise than this one "
            f"(see {PREPROCESSING} in it); install that version, or export the model again"
        )
    quantiles = None
    if provenance.QUANTILES_FILE in parts:
        try:
            quantiles = Quantiles.from_json(parts[provenance.QUANTILES_FILE])
        except ValueError as error:
            raise ExportError(f"{path}: {error}") from error
    return Provenance(manifest["model_id"], preprocessing_hash, _weight_license(manifest), quantiles)


def _check_model_id(
    path: str, manifest: dict[str, Any], config: Config, weights: tree.Params, tokenizer: Tokenizer
) -> None:
    """Checks that the id, by which scores are compared, is that of these weights, this network and this vocabulary.

    A file with fewer weights (scores only, none that serve learning only) or shorter ones (bfloat16) has the id of the
    weights it was made from, which cannot be computed from those in the file. For these the manifest holds a hash of
    the id together with the weights; files of version 0 do not have it.
    """
    flat = tree.flatten(weights)
    seal = manifest.get("weights", {}).get("sha256_with_id")
    if seal is not None and seal != provenance.id_seal(manifest["model_id"], config, flat, tokenizer):
        raise ExportError(
            f"{path}: its {archive.MANIFEST} says that it is model {names.printable(manifest['model_id'])}, but "
            "network, weights and vocabulary are not those that it was written with; parts of two models were put "
            "together. Export the model again"
        )
    has_tags = any(name.startswith(LEARNING_ONLY) for name in flat)
    whole = "predict" in manifest["functions"] and (has_tags or not getattr(config.model, "tag_head", False))
    if not whole or any(leaf.dtype != np.float32 for leaf in flat.values()):
        return
    actual = provenance.model_id(config, weights, tokenizer, manifest["name"], manifest["step"])
    if not provenance.is_id_of(model := manifest["model_id"], actual, config, weights, tokenizer):
        raise ExportError(
            f"{path}: its {archive.MANIFEST} says that it is model {names.printable(model)}, but network, "
            f"weights and vocabulary are those of {names.printable(actual)}; parts of two models were put together. "
            "Export the model again"
        )


def read_weights(path: str, data: bytes) -> tree.Params:
    """Parameters from the part `WEIGHTS`; `path` names the file. Raises ExportError: damaged, or not finite."""
    try:
        tensors = safetensors.deserialize(data)
        flat = {name: np.frombuffer(t["data"], _DTYPES[t["dtype"]]).reshape(t["shape"]) for name, t in tensors}
        params = tree.unflatten(flat)
    except (safetensors.SafetensorError, KeyError, ValueError) as error:
        raise ExportError(f"{path}: {WEIGHTS} cannot be read ({error})") from error
    bad = [name for name, array in flat.items() if not np.isfinite(array.astype(np.float32, copy=False)).all()]
    if bad:
        more = f" and {len(bad) - 1} more weights" if len(bad) > 1 else ""
        raise ExportError(f"{path}: {bad[0]}{more}: not finite (NaN or infinite); export a model that has not diverged")
    return params


def _network(functions: dict[str, Any], side: int) -> Network:
    """Wraps functions of float32 squares into functions of images of any size and dtype."""

    def forward(params, image, text_ids, text_mask, prompt_ids, word_end, generate=False):
        arrays = functions["predict"](params, unit(image, side), text_ids, text_mask, prompt_ids, word_end)
        return Prediction(*arrays), None

    def of_any_size(function):
        def resize_and_call(params, pixels, text_ids, text_mask):
            return function(params, unit(pixels, side), text_ids, text_mask)

        return resize_and_call

    scores = of_any_size(functions["scores"])
    if "predict" not in functions:
        return Network(None, scores, None)
    return Network(forward, scores, of_any_size(functions["heatmaps"]))
