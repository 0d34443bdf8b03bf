"""What a fresh run of any family starts from: the parameters of another model, and their vocabulary."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Any

from data_pipelines import store
from rahf import config as config_lib
from rahf.config import Config, FamilyConfig
from rahf.core import licenses, tree
from rahf.core.errors import TokenizerError, TrainError
from rahf.nn import functional
from rahf.pretrained import source
from rahf.text import Tokenizer, load_tokenizer
from rahf.text.clip_vocabulary import train_clip_tokenizer
from rahf.training import checkpoint, label_counts
from rahf.training.task import Start

_VOCABULARIES = ("spiece.model", "tokenizer.model")  # beside a T5; in a run directory
#: Fields of a model's config that do not change what its parameters mean.
_HARMLESS = (
    "image_size",  # position embeddings are interpolated; whatever else depends on it has another shape, as of
    "vocab_size",
    "dropout", "prior", "compute_dtype", "attention", "remat", "scan_layers",
    "stage", "image_dropout",  # of the motion family: which part is trained
    "prompt_dropout",  # of the diffusion families
    "variant", "task_ids", "tasks_per_example",  # the names of the heads tell
    "image_height", "image_width", "blur", "tower_rate", "flip", "loss", "mirrored", "smoothing",  # of saliency models
    "scales", "edit_probability", "edit_strength",
)  # fmt: skip
#: What the parameters are called that a part of a model's config describes.
_DESCRIBES = {"vit": "vit", "t5": "encoder", "heatmap_head": "heatmap", "score_head": "score"}

#: Reads the parameters of another model: (its config, shapes to read, reader of such shapes) → parameters, notes.
Read = Callable[[FamilyConfig, functional.Params, Callable[[functional.Params], functional.Params]], Any]


def _read_plainly(there: FamilyConfig, shapes: functional.Params, read: Callable) -> tuple[functional.Params, dict]:
    return read(shapes), {}


def check(config: Config) -> None:
    """Refuses contradictory fields of `config.start`. Raises TrainError."""
    start = config.start
    if start.model and (start.vision or start.text):
        raise TrainError("start.model brings its own towers; give either it, or start.vision and start.text")
    if start.fresh and not start.model:
        raise TrainError("start.fresh leaves parts of start.model random, which is not given")
    for name, of in (("vision_revision", "vision"), ("text_revision", "text")):
        if getattr(start, name) and not getattr(start, of):
            raise TrainError(f"start.{name} is given without start.{of}")


def from_model(config: Config, shapes: functional.Params, read: Read = _read_plainly) -> Start:
    """The parameters of the run or model directory `config.start.model`, read straight into their shards.

    Args:
      shapes: jax.ShapeDtypeStruct of every parameter of the configured network, with shardings.
      read: how a family reads parameters whose shapes may differ (position embeddings of another image size); the
        notes that it returns go into the record.

    Raises:
      TrainError: a model with another network than the configured one, or an unknown name in `start.fresh`.
      CheckpointError: no model there, or a damaged one.
    """
    run, state = checkpoint.find(config.start.model)
    fresh = tree.matching_names(shapes, config.start.fresh)
    for pattern in config.start.fresh:
        if not tree.matching_names(shapes, [pattern]):
            raise TrainError(f"start.fresh: no part {pattern!r}; the network has {', '.join(sorted(shapes))}")
    there = config_lib.read_saved(run / "config.json")
    wanted = {name: part for name, part in shapes.items() if name not in fresh}
    _check_network(run, there.model, config.model, list(wanted))
    params, notes = read(
        there.model, wanted, lambda shapes: checkpoint.load_params(state, shapes, skip=config.start.fresh)
    )
    model_licenses = licenses.model_licenses(run)
    record = {
        "name": config.start.model,
        "checkpoint": f"{state.parent.parent.name}/{state.parent.name}",
        "license": "; ".join(sorted(set(model_licenses.values()))) or "trained here",
        "licenses": model_licenses,
        "parts": sorted(params),
        "labels": label_counts.read(run),
        "parameters": functional.count(params),
        **notes,
    }
    return Start(params, {"model": record} | shares(shapes, params))


def shares(params: functional.Params, loaded: functional.Params) -> dict[str, list[str]]:
    """Paths of parameters that were `taken` from elsewhere and of those left `random`."""
    taken = functional.flatten(loaded)
    paths = sorted(functional.flatten(params))
    return {"taken": [p for p in paths if p in taken], "random": [p for p in paths if p not in taken]}


def _check_network(run: pathlib.Path, there: FamilyConfig, ours: FamilyConfig, wanted: list[str]) -> None:
    """Shapes do not tell everything: the number of attention heads, an activation, the normalisation of pixels."""
    lines = []
    for field in dataclasses.fields(ours):
        prefix = _DESCRIBES.get(field.name)
        if field.name in _HARMLESS or prefix and not any(name.startswith(prefix) for name in wanted):
            continue
        old, new = getattr(there, field.name, None), getattr(ours, field.name)
        pairs = {"": (old, new)}
        if dataclasses.is_dataclass(old):
            pairs = {f".{f.name}": (getattr(old, f.name), getattr(new, f.name)) for f in dataclasses.fields(old)}
        lines += [
            f"model.{field.name}{name} is {b!r}, that model has {a!r}"
            for name, (a, b) in pairs.items()
            if a != b and name[1:] not in _HARMLESS
        ]
    if lines:
        raise TrainError(
            f"start.model {run}: belongs to another network than the configured one:\n  " + "\n  ".join(lines) + "\n"
            "Configure the same, or leave the parts that differ random with start.fresh."
        )


def tokenizer(config: Config, fresh: bool, clip_pieces: int | None = None) -> Tokenizer:
    """The vocabulary that `data.tokenizer` names: beside the data, of what the run starts from, a file or folder.

    With ``"prompts"`` a fresh run learns one in CLIP's layout from the prompts of all its training splits.

    Args:
      fresh: whether the run begins; one that goes on reads its own.
      clip_pieces: how many pieces ``"prompts"`` learns, the rows of the network's embedding; None: the network reads
        no vocabulary in CLIP's layout.

    Raises:
      TrainError: no such vocabulary, or one that cannot be learnt.
      DatasetError: prompts cannot be read.
    """
    if config.data.tokenizer == "prompts":
        if clip_pieces is None:
            raise TrainError(
                "data.tokenizer is 'prompts', which learns a vocabulary in CLIP's layout; models of the family "
                f"{config.model.family!r} do not read it: set data.tokenizer to 'dataset', 'start', a file or folder"
            )
        if fresh:
            return _learnt(config, clip_pieces)
    return load_tokenizer(_tokenizer_file(config, fresh))


def _learnt(config: Config, pieces: int) -> Tokenizer:
    paths, split = config.data.paths, config.data.train_split
    prompts = {prompt for path in paths for prompt in store.prompts(path, split)}
    try:
        return train_clip_tokenizer(prompts, pieces, f"prompts of {', '.join(paths)}, split {split!r}")
    except TokenizerError as error:
        raise TrainError(f"data.tokenizer 'prompts': {error}") from error


def check_same_vocabulary(config: Config, tokenizer: Tokenizer) -> None:
    """Refuses another vocabulary than that of `start.model`, if its embedding is taken. Raises TrainError."""
    if not config.start.model or tree.matching_names(["embedding"], config.start.fresh):
        return
    own = load_tokenizer(checkpoint.find(config.start.model)[0] / "tokenizer.model")
    if own.model != tokenizer.model:
        raise TrainError(
            f"{tokenizer.source}: has {tokenizer.vocab_size} pieces and is not the vocabulary that "
            f"{config.start.model} was trained with, which has {own.vocab_size}; set data.tokenizer to 'start'"
        )


def _tokenizer_file(config: Config, fresh: bool) -> pathlib.Path:
    name = config.data.tokenizer
    if name == "dataset":
        return store.tokenizer_path(config.data.paths[0])
    if name == "start":
        return _beside_start(config, fresh)
    if name == "prompts":
        return _own(config)
    file = pathlib.Path(name)
    if file.is_dir():
        return _in_folder(file)
    if not file.is_file():
        raise TrainError(
            f"data.tokenizer: no file {file}; give a SentencePiece model, the folder of a T5, 'start', 'dataset' or "
            "'prompts'"
        )
    return file


def _own(config: Config) -> pathlib.Path:
    return pathlib.Path(config.workdir) / "tokenizer.model"


def _beside_start(config: Config, fresh: bool) -> pathlib.Path:
    if not fresh:  # a run that goes on needs nothing but itself
        return _own(config)
    if config.start.text:
        return _in_folder(source.locate(config.start.text, config.start.text_revision or None).folder)
    if config.start.model:
        return checkpoint.find(config.start.model)[0] / "tokenizer.model"
    raise TrainError(
        "data.tokenizer is 'start', but neither start.text nor start.model is given; "
        "give one, or set data.tokenizer to 'dataset' to train from scratch"
    )


def _in_folder(folder: pathlib.Path) -> pathlib.Path:
    for name in _VOCABULARIES:
        if (folder / name).is_file():
            return folder / name
    raise TrainError(f"data.tokenizer: {folder} has no vocabulary; expected {' or '.join(_VOCABULARIES)} in it")
