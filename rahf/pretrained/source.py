"""Where published checkpoints lie: local folders or the Hugging Face hub; and the JSON files beside the weights."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Iterable
from typing import Any, NamedTuple, Protocol

from rahf.core import json_text
from rahf.core.errors import PretrainedError
from rahf.core.files import is_lfs_pointer, read_regular

Colour = tuple[float, float, float]


class WeightsSource(NamedTuple):
    """A checkpoint on this machine.

    Attributes:
      folder: where its files are; of a ResNet perhaps the single file that torchvision published.
      name: folder, file or hub id as the user wrote it.
      revision: the hub's commit, None for local files.
    """

    folder: pathlib.Path
    name: str
    revision: str | None = None

    def record(self) -> dict[str, str | None]:
        """What a run writes down about the origin of its weights."""
        return {"name": self.name, "revision": self.revision}


class Normalisation(Protocol):
    """Anything that says how pixels in [0,1] are normalised: (x - mean) / std for each colour."""

    image_mean: Colour
    image_std: Colour


_SAFE = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
_PICKLED = ("pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")
_BESIDE = ("config.json", "preprocessor_config.json", "spiece.model", "README.md")
_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def locate(
    name: str | os.PathLike | WeightsSource,
    revision: str | None = None,
    only: Iterable[str] | None = None,
    expected: str | None = None,
) -> WeightsSource:
    """Finds a checkpoint: a local folder, or a repository of the hub (downloaded once, then from the cache).

    Args:
      name: a folder with `config.json`, or a hub id such as ``google/vit-large-patch16-384``.
      revision: branch, tag or commit on the hub; None is its main branch.
      only: patterns of the files to fetch from the hub; None: configs and weights.
      expected: what the folder should be, for the message where nothing is, if ids of the hub have an owner: without
        one, a name is a folder that is missing. None: a folder of a network, whose id may be a name alone.

    Returns:
      The folder, with the commit that the hub resolved the revision to.

    Raises:
      PretrainedError: neither a folder nor a hub id that can be reached or is in the cache.
    """
    if isinstance(name, WeightsSource):
        return name
    text, folder = os.fspath(name), pathlib.Path(name)
    if folder.is_dir():
        if revision is not None:
            raise PretrainedError(f"{text}: a revision ({revision}) has a meaning for hub ids only, not for folders")
        return WeightsSource(folder, text)
    is_id = _HUB_ID.fullmatch(text) and (expected is None or "/" in text)
    if folder.exists() or folder.is_absolute() or not is_id:
        expected = expected or "a folder with config.json and weights"
        raise PretrainedError(f"{text}: expected {expected}, or a hub id like owner/name")
    snapshot = _download(text, revision, only or (*_BESIDE, *_SAFE))
    if only is None and not any(snapshot.glob("model*.safetensors*")):
        snapshot = _download(text, revision, _PICKLED)
    return WeightsSource(snapshot, text, snapshot.name)


def _download(repo: str, revision: str | None, patterns: Iterable[str]) -> pathlib.Path:
    import huggingface_hub

    try:
        return pathlib.Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))
    except Exception as error:  # the hub's own errors, and any of its network library
        at = f" at revision {revision}" if revision else ""
        raise PretrainedError(
            f"{repo}{at}: not a folder here, and the hub does not hand it out: {error}\n"
            "Check the name. Without a network, run `hf download "
            f"{repo}` where there is one and copy its cache here (HF_HOME), or give a folder with the "
            "downloaded files (config.json, model.safetensors)."
        ) from error


def read_json(file: pathlib.Path) -> dict[str, Any]:
    """Reads a JSON object from a checkpoint folder. Raises PretrainedError naming the file."""
    try:
        tree = json_text.parse(read_regular(file))
    except OSError as error:
        raise PretrainedError(f"{file}: cannot be read ({error}); it belongs beside the weights") from error
    except ValueError as error:
        raise PretrainedError(f"{file}: not JSON ({error}); {if_pointer(file)}") from error
    if not isinstance(tree, dict):
        raise PretrainedError(f"{file}: expected a JSON object, found {type(tree).__name__}")
    return tree


def read_config(source: WeightsSource, model_types: tuple[str, ...]) -> dict[str, Any]:
    """Reads `config.json` of a checkpoint whose `model_type` is one of the expected ones.

    Raises:
      PretrainedError: no such file, or the checkpoint of another kind of network.
    """
    file = source.folder / "config.json"
    tree = read_json(file)
    if tree.get("model_type") not in model_types:
        raise PretrainedError(
            f"{file}: model_type is {tree.get('model_type')!r}, expected {' or '.join(map(repr, model_types))}: "
            "these weights belong to another kind of network"
        )
    return tree


def read_normalisation(source: WeightsSource) -> dict[str, Colour]:
    """The fields `image_mean` and `image_std` that `preprocessor_config.json` has; empty without that file."""
    file = source.folder / "preprocessor_config.json"
    if not file.is_file():
        return {}
    processor = read_json(file)
    return {k: tuple(map(float, processor[k])) for k in ("image_mean", "image_std") if k in processor}


def check_normalisation(source: WeightsSource, published: Normalisation, config: Normalisation) -> None:
    """Refuses weights that were trained with another normalisation of pixels than the configured one.

    Args:
      source: of the weights, for the message.
      published: the normalisation that the weights were trained with.
      config: the configured one.

    Raises:
      PretrainedError: naming the field, and both values.
    """
    for field in ("image_mean", "image_std"):
        configured, trained = getattr(config, field), getattr(published, field)
        if max(abs(a - b) for a, b in zip(configured, trained)) > 1e-3:
            raise PretrainedError(f"{source.name}: was trained with {field} {trained}, model.{field} is {configured}")


def if_pointer(file: pathlib.Path) -> str:
    """What to do about a file that cannot be read, for the end of a message."""
    try:
        pointer = is_lfs_pointer(file)
    except OSError:
        pointer = False
    return "it is a Git LFS pointer: run `git lfs pull`" if pointer else "download it again"


def few(names: list, limit: int = 8) -> str:
    """The first names of a list and how many more there are."""
    shown = ", ".join(map(str, names[:limit]))
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
